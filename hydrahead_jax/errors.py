"""Defines the one exception for wrong user input, whose message says what is wrong."""


class UserError(ValueError):
    """Says that the input is bad; the command line prints the message alone and exits with 1."""
