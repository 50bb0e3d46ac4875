"""Holds experiments, one file each, whose docstring is the record."""
