"""The Berkeley Function-Calling Leaderboard: its rows, answers to them, its scores. Nothing of it is for training."""
