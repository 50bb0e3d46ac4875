"""Scores of heads, made from the effects of many pairs."""
