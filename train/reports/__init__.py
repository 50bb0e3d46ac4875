"""Makes pages, tables and pictures that a user looks at."""
