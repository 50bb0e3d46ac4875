"""Loads the teacher, and caches its outputs on disk."""
