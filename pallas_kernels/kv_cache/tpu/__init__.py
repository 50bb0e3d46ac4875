"""Defines the TPU kernel of the decode step over an encoded cache."""
