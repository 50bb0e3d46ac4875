"""The one reader of text: files and folders to documents, for `prepare` and for `TextSource`."""
