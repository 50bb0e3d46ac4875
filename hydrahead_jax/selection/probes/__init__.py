"""Questions whose answers show what a head does."""
