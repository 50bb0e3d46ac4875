"""Files of text: what bytes are text, where records end, and how compressed files are opened."""
