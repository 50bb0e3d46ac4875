"""Makes questions whose answers show what a head does."""
