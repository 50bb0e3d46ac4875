"""Holds the subcommands that train, evaluate, export and cache a teacher."""
