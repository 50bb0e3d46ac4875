"""Provides what scripts import to read a tokenizer."""

from train.data.tokenizer import load_tokenizer

__all__ = ["load_tokenizer"]
