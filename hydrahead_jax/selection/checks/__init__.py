"""Whether the chosen heads are the right ones."""
