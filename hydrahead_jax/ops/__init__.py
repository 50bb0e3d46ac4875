"""Defines pure functions: no parameters, no flax."""
