"""The loaded teacher, and its cached outputs on disk."""
