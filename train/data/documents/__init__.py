"""Reads documents from files and folders, for `prepare` and for `TextSource`."""
