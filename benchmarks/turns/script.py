"""Writes the turns that a small model is asked: facts of the first turn, one in each turn."""

import dataclasses
from typing import NamedTuple

import numpy as np

from hydrahead_jax.evals.niah import NEEDLE_LENGTH, VALUE_LENGTH, NeedleSymbols, needle_document


class Question(NamedTuple):
    """Holds the tokens of a turn, which end with a key, and what must be replied.

    Attributes:
      tokens: int32.
      answer: the value of the key.
      again: the key was asked for in an earlier turn too.
    """

    tokens: np.ndarray
    answer: list[int]
    again: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptSettings:
    """Describes sessions whose length is a multiple of `chunk` whenever a question ends.

    Attributes:
      sessions: how many there are.
      rounds: turns of a session.
      facts: of a session, all in its first turn. They are asked for in a random order, and from
        the beginning of that order once all were.
      chunk: tokens that are read at once.
      prefix: tokens that all sessions begin with, text alone.
      context: tokens of the first turn, facts and question included.
      seed: of text, facts and orders.
    """

    sessions: int = 32
    rounds: int = 8
    facts: int = 6
    chunk: int = 20
    prefix: int = 60
    context: int = 40
    seed: int = 0

    def __post_init__(self):
        if self.prefix % self.chunk or self.context % self.chunk:
            raise ValueError(
                f"prefix={self.prefix} and context={self.context} must be multiples of "
                f"chunk={self.chunk}"
            )

    @property
    def longest(self) -> int:
        """Returns the tokens of a session whose last reply was drawn."""
        return self.prefix + self.context + (self.rounds - 1) * self.chunk + VALUE_LENGTH


class Script(NamedTuple):
    """Holds the tokens of the prefix, and the questions of each session."""

    prefix: np.ndarray
    sessions: list[list[Question]]


def write_script(settings: ScriptSettings, symbols: NeedleSymbols, text: np.ndarray) -> Script:
    """Draws prefix and sessions from stretches of text.

    Args:
      settings: of the sessions.
      symbols: of the tokenizer.
      text: tokens, many more than a session has.
    """
    rng = np.random.default_rng(settings.seed)
    sessions = [_session(settings, symbols, text, rng) for _ in range(settings.sessions)]
    return Script(_stretch(text, settings.prefix, rng), sessions)


def _session(settings: ScriptSettings, symbols: NeedleSymbols, text, rng) -> list[Question]:
    rounds, body = settings.rounds, settings.context - 1
    asked = np.resize(rng.permutation(settings.facts), rounds)
    document = needle_document(
        symbols,
        text,
        rng,
        length=body + NEEDLE_LENGTH * rounds,
        needles=settings.facts,
        asked=asked,
    )
    first, queries_RX = document.tokens_T[:body], document.tokens_T[body:].reshape(rounds, -1)
    # A reply and a turn after the first come to a chunk.
    filler = settings.chunk - VALUE_LENGTH - 1
    questions = []
    for number, (key, *answer) in enumerate(queries_RX.tolist()):
        before = _stretch(text, filler, rng) if number else first
        tokens = np.append(before, key).astype(np.int32)
        questions.append(Question(tokens, answer, number >= settings.facts))
    return questions


def _stretch(text: np.ndarray, length: int, rng) -> np.ndarray:
    start = rng.integers(len(text) - length + 1)
    return text[start : start + length].astype(np.int32)
