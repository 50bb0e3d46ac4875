"""The PyTorch code that travels with an exported model; it imports torch and transformers only."""
