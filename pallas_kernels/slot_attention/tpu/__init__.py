"""Implements gated slot attention as Pallas kernels for TPU."""
