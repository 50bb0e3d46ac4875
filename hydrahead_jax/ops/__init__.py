"""Holds pure functions: no parameters, no flax."""
