"""Experiments, one file each: its docstring is the record."""
