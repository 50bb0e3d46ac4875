"""Runs the training: steps, checkpoints, metrics and resuming."""
