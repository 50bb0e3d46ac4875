"""Tokenises text files into shards, once, with many processes: `python -m train prepare`."""
