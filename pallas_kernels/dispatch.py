"""Chooses one of an op's implementations: the one named, or the best that accepts the arguments."""

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

logger = logging.getLogger(__name__)

Name = TypeVar("Name", bound=str)

if TYPE_CHECKING:
    Choice = Name | Sequence[Name] | None
else:

    class Choice:
        """Annotates `implementation`: one of an op's names, several in order, or None.

        Editors and type checkers know the names. Checkers at run time take any, so that a caller
        reads the sentence of `Op`, which lists them.
        """

        def __class_getitem__(cls, names):
            return str | Sequence[str] | None


@runtime_checkable
class Implementation(Protocol):
    """Computes an op from arrays that the op's public function has checked.

    All implementations of an op take the same arrays by position and the same settings by keyword,
    and return the same results. One registered with a type of block sizes also takes `blocks`, and
    chooses them itself if None. One that does not take some shape, dtype, setting or machine raises
    NotImplementedError while it is traced, with a sentence that says which argument and what it
    accepts; it never computes something else. It is differentiable in every floating-point array,
    and works under `jax.vmap`, `jax.checkpoint` and `jax.shard_map`. Its numbers are compared with
    the "reference" by the op's test suite, forward and backward.
    """

    def __call__(self, *arrays: jax.Array, **settings) -> Any: ...


class Op:
    """Runs a function that has several implementations, registered best first."""

    def __init__(self, name: str):
        self.name = name
        self.implementations: dict[str, Implementation] = {}
        self.blocks: dict[str, type] = {}
        self._chosen: list[str] = []

    def register(
        self,
        name: str,
        implementation: Implementation,
        *,
        blocks: type | None = None,
        by_name_only: bool = False,
    ) -> None:
        """Adds an implementation.

        Args:
          blocks: type of its block sizes, if a caller may choose them.
          by_name_only: it runs only where a caller asks for it.
        """
        self.implementations[name] = implementation
        if blocks is not None:
            self.blocks[name] = blocks
        if not by_name_only:
            self._chosen.append(name)

    def __call__(self, *args, implementation: Choice[str] = None, blocks=None, **kwargs):
        """Runs the first implementation that accepts the arguments.

        Args:
          *args: arrays of the op.
          implementation: a name, or names to try in that order; None tries all, the best first, but
            for those that run by name only.
          blocks: block sizes for the implementation that has this type of them; the others refuse.
          **kwargs: settings of the op.

        Raises:
          ValueError: no implementation has that name, or there is no name in the sequence.
          NotImplementedError: every implementation that was tried refuses the arguments.
        """
        refusals = []
        for name in self._names(implementation):
            try:
                result = self._run(name, args, kwargs, blocks)
            except NotImplementedError as refusal:
                refusals.append(f"{name}: {refusal}")
                continue
            _log_choice(self.name, name, str([jnp.shape(x) for x in jax.tree.leaves(args)]))
            return result
        raise NotImplementedError(f"{self.name}: " + "; ".join(refusals))

    def _run(self, name: str, args, kwargs, blocks):
        accepted = self.blocks.get(name)
        if blocks is not None:
            if accepted is None or not isinstance(blocks, accepted):
                what = f"{accepted.__name__} is accepted" if accepted else "it has none to choose"
                raise NotImplementedError(f"blocks is {type(blocks).__name__}; {what}")
            kwargs = kwargs | {"blocks": blocks}
        return self.implementations[name](*args, **kwargs)

    def _names(self, choice: Choice[str]) -> Sequence[str]:
        if choice is None:
            return self._chosen
        names = [choice] if isinstance(choice, str) else list(choice)
        unknown = [name for name in names if name not in self.implementations]
        if unknown or not names:
            what = f"implementation {unknown[0]!r}" if unknown else "implementation without a name"
            raise ValueError(f"{self.name} has no {what}, only {', '.join(self.implementations)}")
        return names


@functools.cache
def _log_choice(op: str, implementation: str, shapes: str) -> None:
    logger.info("%s%s runs as %s", op, shapes, implementation)
