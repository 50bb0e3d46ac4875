"""Chooses one of an op's implementations: the one named, or the best that accepts the arguments."""

import functools
import logging
from collections.abc import Callable

import jax.numpy as jnp

logger = logging.getLogger(__name__)


class Op:
    """Runs a function that has several implementations, registered best first.

    An implementation refuses arguments by raising NotImplementedError while tracing, with a
    sentence that says which argument and what it accepts.
    """

    def __init__(self, name: str):
        self.name = name
        self.implementations: dict[str, Callable] = {}
        self._chosen: list[str] = []

    def register(self, name: str, implementation: Callable, *, by_name_only: bool = False) -> None:
        """Adds an implementation; one `by_name_only` runs only where a caller asks for it."""
        self.implementations[name] = implementation
        if not by_name_only:
            self._chosen.append(name)

    def __call__(self, *args, implementation: str | None = None, **kwargs):
        """Runs `implementation`, or with None the first that accepts the arguments.

        Raises:
          ValueError: no implementation has that name.
          NotImplementedError: the named implementation, or every one that may be chosen, refuses
            the arguments.
        """
        if implementation is not None and implementation not in self.implementations:
            raise ValueError(
                f"{self.name} has no implementation {implementation!r}, "
                f"only {', '.join(self.implementations)}"
            )
        refusals = []
        for name in [implementation] if implementation else self._chosen:
            try:
                result = self.implementations[name](*args, **kwargs)
            except NotImplementedError as refusal:
                refusals.append(f"{name}: {refusal}")
                continue
            _log_choice(self.name, name, str([jnp.shape(x) for x in args]))
            return result
        raise NotImplementedError(f"{self.name}: " + "; ".join(refusals))


@functools.cache
def _log_choice(op: str, implementation: str, shapes: str) -> None:
    logger.info("%s%s runs as %s", op, shapes, implementation)
