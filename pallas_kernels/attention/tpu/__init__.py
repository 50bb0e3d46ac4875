"""Implements softmax attention on TPU."""
