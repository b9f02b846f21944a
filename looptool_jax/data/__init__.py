"""Where samples come from and go to: the JSONL store, importers of public formats, publishing."""
