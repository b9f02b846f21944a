"""Training: log-probs, SFT, GRPO, the optimiser, checkpoints."""
