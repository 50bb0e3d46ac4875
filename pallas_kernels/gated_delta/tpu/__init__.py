"""Implements the gated delta rule as Pallas kernels for TPU."""
