"""The embedded model: its weights, tokenizer and chat template. See README.md beside this file."""
