"""Reads text files: what bytes are text, where records end, how compressed files open."""
