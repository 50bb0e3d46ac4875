"""Runs gated slot attention on Hopper GPUs."""
