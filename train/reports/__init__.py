"""Pages, tables and pictures that a user looks at."""
