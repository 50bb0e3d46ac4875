"""Compares several students: `demo` and `evidence`."""
