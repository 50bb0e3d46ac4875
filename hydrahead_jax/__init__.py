"""Turns a pretrained Transformer into a long-context hybrid, head by head."""
