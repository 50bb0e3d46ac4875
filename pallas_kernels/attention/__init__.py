"""Implements blockwise softmax attention for any map from query heads to KV heads."""
