"""The training run: steps, checkpoints, metrics and resuming."""
