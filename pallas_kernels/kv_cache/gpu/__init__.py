"""Defines the Hopper kernel of the decode step over an encoded cache."""
