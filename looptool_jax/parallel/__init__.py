"""Meshes and the rules that place parameters, batches and caches on them."""
