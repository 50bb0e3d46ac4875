"""The one exception that means: the user's input is wrong, and this sentence says how."""


class UserError(ValueError):
    """Bad input; the command line prints the message alone and exits with 1."""
