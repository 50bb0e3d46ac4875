"""Stores keys and values in few bits, and runs the decode step on them as they are stored."""
