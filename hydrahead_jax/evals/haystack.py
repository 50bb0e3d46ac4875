"""Provides the real text that needles are put into."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable

import numpy as np

from hydrahead_jax.errors import UserError

_MOST_WORDS = 10**6


@dataclasses.dataclass(frozen=True, eq=False)
class Haystack:
    """Provides text, and the same as tokens, each made when it is asked for.

    Attributes:
      documents: empty where only tokens are known.
      encode: gives the tokens, without tokens between documents; None where only text is known.
    """

    documents: tuple[str, ...]
    encode: Callable[[], np.ndarray] | None = None

    @classmethod
    def of(cls, tokens: "Haystack | np.ndarray") -> "Haystack":
        """Makes a haystack of which only the tokens are known, or returns the one that is given."""
        return tokens if isinstance(tokens, cls) else cls((), lambda: tokens)

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """Returns int32 tokens.

        Raises:
          UserError: they are not known.
        """
        if self.encode is None:
            raise UserError(
                "the haystack holds text only; needle symbols and the loss on text need its tokens"
            )
        return np.asarray(self.encode(), np.int32)

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """Returns the first million words, split at white space.

        Raises:
          UserError: there are none.
        """
        every = (word[0] for text in self.documents for word in re.finditer(r"\S+", text))
        words = tuple(itertools.islice(every, _MOST_WORDS))
        if not words:
            raise UserError(
                "the haystack holds no text, which RULER documents are made of; give a "
                "haystack with text"
            )
        return words
