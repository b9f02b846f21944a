"""What a run shows at its end: tables in the terminal, and an HTML report."""
