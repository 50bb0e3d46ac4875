"""Scores heads and chooses those that stay softmax."""
