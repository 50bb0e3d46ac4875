"""Holds the PyTorch code of an exported model; it imports torch and transformers only."""
