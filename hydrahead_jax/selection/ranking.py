"""All heads from the most to the least needed, ties broken on purpose."""

import itertools

import numpy as np

from hydrahead_jax.selection.scores import HeadScores

RESOLUTION = 1e-5
Head = tuple[int, int]


def ranking(scores: HeadScores, *, kv_heads: int, seed: int = 0) -> list[Head]:
    """(layer, head), best first: by score, then by mean |effect|, both to 1e-5, below which they
    are rounding; then heads that share a KV head with one ranked already, because they cost no
    cache; then a seeded draw, never the index."""
    group = scores.query_heads // kv_heads
    needs = np.rint(np.stack([scores.score_LN, scores.mean_abs_LN]) / RESOLUTION)
    keys = {head: tuple(-needs[:, *head]) for head in np.ndindex(needs.shape[1:])}
    drawn = random_order(scores.layers, scores.query_heads, seed)
    ranked: list[Head] = []
    read: set[Head] = set()
    for _, tied in itertools.groupby(sorted(drawn, key=keys.get), key=keys.get):
        waiting = list(tied)
        while waiting:
            best = next((h for h in waiting if (h[0], h[1] // group) in read), waiting[0])
            waiting.remove(best)
            ranked.append(best)
            read.add((best[0], best[1] // group))
    return ranked


def random_order(layers: int, query_heads: int, seed: int) -> list[Head]:
    """All heads in a seeded random order."""
    drawn = np.random.default_rng(seed).permutation(layers * query_heads)
    return [(int(i) // query_heads, int(i) % query_heads) for i in drawn]
