"""Records turns that were served, and sums them up."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Served(NamedTuple):
    """Records one turn.

    Attributes:
      round: number of the session's turn, from 0.
      hit: the session's cache was in memory; never in the first round.
      evicted: caches that were dropped for it.
      resident: sequences that had a cache when it began, its own included.
      read: tokens that were read before the reply, history that was dropped included.
      ttft_s: seconds from the turn's arrival to the first token of the reply.
      reply: tokens of the reply.
    """

    round: int
    hit: bool
    evicted: int
    resident: int
    read: int
    ttft_s: float
    reply: int


def summary(turns: Sequence[Served], seconds: float) -> dict[str, Any]:
    """Sums up turns that took `seconds` together."""
    later = [turn for turn in turns if turn.round]
    rounds = range(1 + max(turn.round for turn in turns))
    return {
        "turns": len(turns),
        "hit_rate": _share_of_hits(later),
        "resident": float(np.mean([turn.resident for turn in later])) if later else None,
        "evictions": sum(turn.evicted for turn in turns),
        "tokens_read": sum(turn.read for turn in turns),
        "seconds": seconds,
        "reply_tokens_a_second": sum(turn.reply for turn in turns) / seconds,
        **_times(turns),
        "rounds": [_round([turn for turn in turns if turn.round == r]) for r in rounds],
    }


def _round(turns: Sequence[Served]) -> dict[str, Any]:
    return {"hit_rate": _share_of_hits(turns) if turns[0].round else None, **_times(turns)}


def _share_of_hits(turns: Sequence[Served]) -> float | None:
    return sum(turn.hit for turn in turns) / len(turns) if turns else None


def _times(turns: Sequence[Served]) -> dict[str, float]:
    p50, p95 = np.percentile([turn.ttft_s for turn in turns], (50, 95))
    return {"ttft_p50_s": float(p50), "ttft_p95_s": float(p95)}
