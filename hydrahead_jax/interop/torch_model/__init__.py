"""Runs an exported model in PyTorch; this code imports torch and transformers only."""
