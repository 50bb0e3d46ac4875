"""Chooses which heads keep softmax attention."""
