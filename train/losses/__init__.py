"""Computes the losses of the stages."""
