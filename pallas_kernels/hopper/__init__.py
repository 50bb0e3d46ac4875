"""Defines what the Mosaic GPU kernels for Hopper have in common."""
