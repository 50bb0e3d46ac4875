"""Comparisons of several students: `demo` and `evidence`."""
