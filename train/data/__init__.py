"""Text and batches."""
