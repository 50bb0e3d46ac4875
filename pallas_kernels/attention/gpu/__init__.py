"""Implements softmax attention on Hopper GPUs."""
