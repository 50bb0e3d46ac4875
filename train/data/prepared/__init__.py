"""Text that was tokenised by `python -m train prepare`: read, packed and mixed."""
