"""Implements the gated delta rule as Mosaic GPU kernels for Hopper."""
