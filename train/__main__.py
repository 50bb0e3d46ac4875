"""Runs `python -m train COMMAND CONFIG [key=value ...]`."""

import logging
import os
import sys
import traceback

import tyro

from hydrahead_jax.errors import UserError
from train import command_line

# C++ parts of the dependencies log to stderr and ignore Python's logging settings.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


_CRASHED = 70  # not 1, which stands for mistakes that a restart cannot fix


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns the exit code; a user's mistake is one sentence on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    # orbax logs pages here about errors that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--fields" in arguments and arguments[0] in command_line.CONFIGS:
        command_line.print_fields(arguments[0])
        return 0
    try:
        tyro.extras.subcommand_cli_from_dict(
            command_line.COMMANDS,
            prog="python -m train",
            description="Turn a pretrained Transformer into a hybrid, head by head.",
            args=arguments,
        )
    except Exception as error:
        return ended_by(error)
    return 0


def ended_by(error: Exception) -> int:
    """Returns the exit code for an error; several processes report the error only once."""
    from train import distributed  # needs jax, which would slow --help down
    from train.run.disk import WriteFailed

    if isinstance(error, distributed.Stopped):
        if distributed.is_first():
            print(error, flush=True)
        distributed.finish()
        return 0
    if isinstance(error, WriteFailed):
        distributed.wait_for_verdict()  # with a dead peer nothing can be saved either
    if isinstance(error, UserError):
        distributed.fail(str(error))
        print(f"error: {error}", file=sys.stderr)
        return 1
    if isinstance(error, distributed.PeerLost):
        distributed.fail(str(error), distributed.EXIT_CODE)
    distributed.wait_for_verdict()
    if distributed.count() > 1:
        traceback.print_exception(error)
        distributed.fail(f"{type(error).__name__}: {error}", _CRASHED)
    raise error


if __name__ == "__main__":
    sys.exit(main())
