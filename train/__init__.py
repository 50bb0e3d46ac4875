"""Trains hybrids: stages, loop, data, checkpoints and the command line; runs from a checkout."""
