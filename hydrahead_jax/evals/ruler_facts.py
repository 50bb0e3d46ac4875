"""Draws keys and values of RULER's needles: adjective-noun words, numbers of 7 digits, uuids."""

import functools
import uuid
from typing import Literal, NamedTuple

import numpy as np

from hydrahead_jax.errors import UserError

ValueKind = Literal["number", "uuid"]
_UUID_VERSION, _UUID_VARIANT = 14, 19


class Fact(NamedTuple):
    key: str
    value: str


class FactSource:
    """Draws facts of which no two share a key or a value."""

    def __init__(self, kind: ValueKind, rng: np.random.Generator):
        self._words = _words()
        self._draw_value = {
            "number": lambda: str(rng.integers(10**6, 10**7)),
            "uuid": lambda: str(uuid.UUID(bytes=rng.bytes(16), version=4)),
        }[kind]
        self._rng = rng
        self._seen: set[str] = set()

    def fact(self) -> Fact:
        return Fact(self._new(self._key), self._new(self._draw_value))

    def value_unlike(self, value: str) -> str:
        """Draws a value of the same form that differs wherever the form leaves a choice.

        Digits replace digits and letters replace letters, so that most tokenizers cut both alike.
        """
        return self._new(lambda: "".join(self._others(value)))

    def _new(self, draw) -> str:
        while (drawn := draw()) in self._seen:
            pass
        self._seen.add(drawn)
        return drawn

    def _key(self) -> str:
        adjectives, nouns = self._words
        pick = lambda words: words[self._rng.integers(len(words))]
        return f"{pick(adjectives)}-{pick(nouns)}"

    def _others(self, value: str) -> list[str]:
        pick = lambda characters: characters[self._rng.integers(len(characters))]
        return [pick(_same_form(value, place).replace(c, "") or c) for place, c in enumerate(value)]


def _same_form(value: str, place: int) -> str:
    """Returns the characters that may stand at a place of a value of this form."""
    character = value[place]
    if "-" not in value:
        return "0123456789" if place else "123456789"
    if place == _UUID_VARIANT:
        return "89" if character in "89" else "ab"
    if place == _UUID_VERSION or character == "-":
        return character
    return "0123456789" if character.isdigit() else "abcdef"


@functools.cache
def _words() -> tuple[list[str], list[str]]:
    """Returns adjectives and nouns, the word lists that RULER takes."""
    try:
        import wonderwords
    except ImportError as error:
        raise UserError(
            "RULER documents take their keys from the package wonderwords; install it with "
            "pip install wonderwords"
        ) from error
    words = wonderwords.RandomWord(enhanced_prefixes=False)
    return tuple(words.filter(include_categories=[kind]) for kind in ("adjective", "noun"))
