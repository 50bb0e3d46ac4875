"""Draws the turns of agent sessions that share a prefix."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Turn(NamedTuple):
    """Describes one turn of a session.

    Attributes:
      tokens: tokens that arrive: the session's context, a user's words, or what a tool returned.
      reply: tokens of the reply.
      pause_s: seconds from the end of the turn before, or from the start, to its arrival.
    """

    tokens: int
    reply: int
    pause_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Describes sessions of several turns each, all of which continue one prefix.

    Attributes:
      sessions: how many there are at a time; each takes its next turn a pause after a reply.
      rounds: turns of a session.
      prefix: tokens that all sessions begin with, such as instructions and tools.
      context: mean tokens of a session's first turn.
      tokens: mean tokens of each later turn.
      reply: tokens of each reply.
      pause_s: mean seconds of a pause, in which a tool runs or a user thinks.
      seed: of the draws.
    """

    sessions: int
    rounds: int = 10
    prefix: int = 8192
    context: int = 8192
    tokens: int = 3072
    reply: int = 256
    pause_s: float = 30.0
    seed: int = 0

    def turns(self) -> list[list[Turn]]:
        """Draws the turns of each session.

        Numbers of tokens are uniform from half their mean to one and a half, pauses exponential.
        """
        rng = np.random.default_rng(self.seed)
        shape = (self.sessions, self.rounds)
        mean = np.full(shape, self.tokens)
        mean[:, 0] = self.context
        tokens = rng.integers(mean // 2, mean + mean // 2 + 1)
        pauses = rng.exponential(self.pause_s, shape)
        return [
            [Turn(int(n), self.reply, float(s)) for n, s in zip(*session, strict=True)]
            for session in zip(tokens, pauses, strict=True)
        ]
