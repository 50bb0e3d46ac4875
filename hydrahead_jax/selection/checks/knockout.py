"""Checks that the scores name the heads that matter: removes heads and measures retrieval."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from hydrahead_jax.cache import check_names
from hydrahead_jax.dataclass_json import RECORDED_IF_SET
from hydrahead_jax.errors import UserError
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.selection.checks.ablation import knock_out_edits
from hydrahead_jax.selection.scores.ranking import Head, random_order, ranking
from hydrahead_jax.selection.scores.scores import HeadScores

SCORE_ORDER, REVERSE_ORDER, RANDOM_ORDER = "score order", "reverse order", "random order"
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)

Accuracy = Callable[[dict[int, HeadEdit]], float]
Curves = dict[str, list[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnockOutSettings:
    """Says which heads are removed, and how retrieval is measured without them.

    Attributes:
      counts: how many heads are removed, each a point of every curve; None is none, 1 %, 2 %, 5 %,
        10 %, 20 %, 35 %, 50 %, 75 % and all of them.
      draws: random orders beside the order of the scores and its reverse.
      documents: held-out needle documents per point.
      needles: needles in each document.
      length: tokens of a document and its reply; None is the length of the probes.
      reply: tokens of a reply to documents in RULER's words.
      batch: documents per pass.
      prefill_chunk: prompt tokens per pass; bounds memory.
      seed: seed of the documents and of the random orders.
      kv_cache: format of the KV cache, as in `EvalSettings`.
    """

    counts: tuple[int, ...] | None = None
    draws: int = 5
    documents: int = 64
    needles: int = 1
    length: int | None = None
    reply: int = 32
    batch: int = 16
    prefill_chunk: int | None = 256
    seed: int = 0
    kv_cache: str | tuple[str | None, ...] | None = dataclasses.field(
        default=None, metadata=RECORDED_IF_SET
    )

    def __post_init__(self):
        if self.counts is not None and (
            not self.counts or min(self.counts) < 0 or list(self.counts) != sorted({*self.counts})
        ):
            raise UserError(
                f"counts={self.counts} must be ascending numbers of heads, such as (0, 1, 2, 4)"
            )
        counts = (self.draws, self.documents, self.needles, self.reply, self.batch)
        if min(*counts, self.prefill_chunk or 1) < 1 or self.seed < 0:
            raise UserError(
                "a knock-out needs at least one draw, document, needle, token of a reply and of a "
                f"pass and row a batch, and a seed of at least 0; it has {self}"
            )
        check_names(self.kv_cache)

    def counts_for(self, heads: int) -> tuple[int, ...]:
        """Returns the counts for a model with so many softmax heads.

        Raises:
          UserError: more are to be removed than there are.
        """
        if self.counts is None:
            return tuple(sorted({0, *(max(1, round(share * heads)) for share in _SHARES)}))
        if self.counts[-1] > heads:
            raise UserError(
                f"counts={self.counts} must be at most {heads}, the softmax heads of the model"
            )
        return self.counts


def knock_out_orders(
    scores: HeadScores, *, kv_heads: int, draws: int, seed: int = 0
) -> dict[str, list[Head]]:
    """Returns the softmax heads by score, best first; the reverse; and `draws` random orders."""
    ranked = ranking(scores, kv_heads=kv_heads, seed=seed)
    orders = {SCORE_ORDER: ranked, REVERSE_ORDER: ranked[::-1]}
    for draw in range(1, draws + 1):
        drawn = random_order(scores.layers, scores.query_heads, seed + draw)
        orders[f"{RANDOM_ORDER} {draw}"] = [head for head in drawn if scores.softmax_LN[head]]
    return orders


def knock_out_curves(
    orders: dict[str, list[Head]],
    counts: Sequence[int],
    mean_LNH: Float[np.ndarray, "L N H"],
    accuracy: Accuracy,
    *,
    known: Curves | None = None,
    on_point: Callable[[Curves, int, int], None] | None = None,
) -> Curves:
    """Returns the accuracy with the first `count` heads of each order mean-ablated.

    Curves that begin alike share their points: no set of heads is measured twice.

    Args:
      orders: orders of heads, by name.
      counts: how many heads are removed, from 0 to the length of an order.
      mean_LNH: output that replaces a removed head's, see `mean_heads`.
      accuracy: maps edits to accuracy, such as `niah_accuracy` of some questions.
      known: points measured earlier: the first of some curves, for the same arguments.
      on_point: called after each new point with all curves so far, and the numbers of points done
        and in all.

    Returns:
      Name of the order -> one accuracy a count.
    """
    curves = {name: list((known or {}).get(name, [])) for name in orders}
    removed = lambda name, count: frozenset(orders[name][:count])
    measured = {
        removed(name, count): point
        for name, points in curves.items()
        for count, point in zip(counts, points, strict=False)
    }
    total = len(orders) * len(counts)
    for name, points in curves.items():
        for count in counts[len(points) :]:
            heads = removed(name, count)
            if heads not in measured:
                measured[heads] = accuracy(knock_out_edits(sorted(heads), mean_LNH))
            points.append(measured[heads])
            if on_point is not None:
                on_point(curves, sum(map(len, curves.values())), total)
    return curves
