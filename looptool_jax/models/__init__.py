"""Decoders: configuration, parameters, the forward functions, and the key map to and from Hugging Face weights."""
