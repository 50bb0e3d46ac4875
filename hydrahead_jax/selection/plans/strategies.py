"""Takes heads in an order: each plan is a beginning of it."""

from collections.abc import Iterable
from itertools import chain

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.selection.scores.ranking import Head, random_order, ranking
from hydrahead_jax.selection.scores.scores import HeadScores

INTERP = ("global-interp-C", "global-interp", "layer-interp")
STRATEGIES = (*INTERP, "global-random", "layer-random", "fixed", "random-without-receivers")
BY_LAYER = ("layer-interp", "layer-random", "fixed")
NEED_SCORES = (*INTERP, "random-without-receivers")

Steps = list[list[Head]]


def steps(
    strategy: str,
    scores: HeadScores | None,
    config: ModelConfig,
    *,
    seed: int,
    tensor_multiple: int = 1,
) -> Steps:
    """Returns what to keep softmax first, second and so on.

    Heads of one step are kept together.
    """
    order = _order(strategy, scores, config, seed)
    if strategy == "global-interp-C":
        return _one_per_layer(order)
    if strategy not in BY_LAYER:
        return [[head] for head in order]
    layers = [[head for head in order if head[0] == layer] for layer in range(config.layers)]
    ranks = [list(rank) for rank in zip(*layers, strict=False)]
    whole = range(0, len(ranks) - tensor_multiple + 1, tensor_multiple)
    return [list(chain(*ranks[first : first + tensor_multiple])) for first in whole]


def first_heads(steps: Steps, fa_heads: int, strategy: str) -> list[Head]:
    """Returns the first steps, as many as make `fa_heads` heads."""
    chosen: list[Head] = []
    for step in steps:
        if len(chosen) >= fa_heads:
            break
        chosen += step
    if len(chosen) < fa_heads:
        raise UserError(
            f"strategy {strategy} has {len(chosen)} heads to choose from and the budget is "
            f"{fa_heads}; lower the budget"
        )
    return chosen


def first_kv_heads(steps: Steps, kv_heads: int, config: ModelConfig, strategy: str) -> list[Head]:
    """Returns the first steps, as many as read at most `kv_heads` KV heads."""
    chosen: list[Head] = []
    for step in steps:
        if kv_heads_read([*chosen, *step], config) > kv_heads:
            break
        chosen += step
    if not chosen:
        smallest = kv_heads_read(steps[0], config) if steps else 1
        raise too_small(kv_heads, smallest, strategy)
    return chosen


def too_small(kv_heads: int, smallest: int, strategy: str) -> UserError:
    return UserError(
        f"the budget in bytes pays for {kv_heads} KV heads, the smallest plan of strategy "
        f"{strategy} reads {smallest}; raise kv_bytes"
    )


def kv_heads_read(heads: Iterable[Head], config: ModelConfig) -> int:
    return len({(layer, config.kv_head(head)) for layer, head in heads})


def _order(strategy: str, scores: HeadScores | None, config: ModelConfig, seed: int) -> list[Head]:
    if strategy in INTERP:
        return ranking(scores, kv_heads=config.kv_heads, seed=seed)
    softmax = [set(config.softmax_heads(layer)) for layer in range(config.layers)]
    if strategy == "fixed":
        everywhere = sorted(set.intersection(*softmax))
        drawn = np.random.default_rng(seed).permutation(everywhere).tolist()
        return [(layer, head) for head in drawn for layer in range(config.layers)]
    drawn = random_order(config.layers, config.query_heads, seed)
    drawn = [(layer, head) for layer, head in drawn if head in softmax[layer]]
    if strategy == "random-without-receivers":
        drawn = [head for head in drawn if not scores.receivers_LN[head]]
    return drawn


def _one_per_layer(ranked: list[Head]) -> Steps:
    first: dict[int, Head] = {}
    for head in ranked:
        first.setdefault(head[0], head)
    others = [[head] for head in ranked if first[head[0]] != head]
    return [list(first.values()), *others]
