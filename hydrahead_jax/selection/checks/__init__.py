"""Checks whether the chosen heads are the right ones."""
