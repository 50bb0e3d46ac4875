"""Reads, packs and mixes text that was tokenised by `python -m train prepare`."""
