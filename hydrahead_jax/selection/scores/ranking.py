"""Ranks all softmax heads from the most to the least needed, with defined tie breaks."""

import itertools

import numpy as np

from hydrahead_jax.selection.scores.scores import GENERAL, HeadScores
from hydrahead_jax.selection.scores.statistics import RESOLUTION

Head = tuple[int, int]


def ranking(scores: HeadScores, *, kv_heads: int, seed: int = 0) -> list[Head]:
    """Returns (layer, head) of the softmax heads, best first.

    They are ordered by score; by mean |effect|; by mean |total effect|; by the score of the
    capability "general"; all to 1e-5, below which they are rounding; then heads that share a KV
    head with one ranked already, because they cost no cache; then a seeded draw, never the index.
    """
    group = scores.query_heads // kv_heads
    levels_XLN = levels(scores)
    keys = {head: tuple(-levels_XLN[:, *head]) for head in np.ndindex(levels_XLN.shape[1:])}
    drawn = random_order(scores.layers, scores.query_heads, seed)
    drawn = [head for head in drawn if scores.softmax_LN[head]]
    ranked: list[Head] = []
    read: set[Head] = set()
    for _, tied in itertools.groupby(sorted(drawn, key=keys.get), key=keys.get):
        unread: dict[Head, list[Head]] = {}
        for layer, head in tied:
            kv_head = (layer, head // group)
            place = ranked if kv_head in read else unread.setdefault(kv_head, [])
            place.append((layer, head))
        ranked += itertools.chain(*unread.values())
        read |= unread.keys()
    return ranked


def levels(scores: HeadScores) -> np.ndarray:
    """Returns what orders heads [X, L, N], the most important first.

    The values are integer multiples of 1e-5.
    """
    views = [scores.score_LN, scores.mean_abs_LN, scores.total_LN]
    if GENERAL in scores.capability_names:
        views.append(scores.normalised_LN(GENERAL))
    return np.rint(np.stack(views) / RESOLUTION).astype(np.int64)


def random_order(layers: int, query_heads: int, seed: int) -> list[Head]:
    """Returns all heads in a seeded random order."""
    drawn = np.random.default_rng(seed).permutation(layers * query_heads)
    return [(int(i) // query_heads, int(i) % query_heads) for i in drawn]
