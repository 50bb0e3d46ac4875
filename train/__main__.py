"""`python -m train COMMAND CONFIG [key=value ...]`."""

import logging
import os
import sys

import tyro

from hydrahead_jax.errors import UserError
from train import commands

# C++ parts of the dependencies log to stderr whatever Python's own settings say.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(arguments: list[str] | None = None) -> int:
    """The exit code; a user's mistake is one sentence on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands.COMMANDS,
            prog="python -m train",
            description="Turn a pretrained Transformer into a hybrid, head by head.",
            args=arguments,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
