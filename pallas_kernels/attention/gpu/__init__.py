"""Softmax attention on Hopper GPUs."""
