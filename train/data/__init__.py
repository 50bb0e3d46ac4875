"""Reads text and makes batches."""
