"""ACEBench: its Normal and Special rows, answers to them, its scores. Nothing of it is for training."""
