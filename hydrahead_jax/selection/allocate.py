"""From head scores and a budget to a head plan."""

import logging
import re
from collections.abc import Iterable

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection.ranking import Head, random_order, ranking
from hydrahead_jax.selection.scores import HeadScores

STRATEGIES = ("global-interp", "global-random", "fixed", "random-without-receivers")
_NEED_SCORES = ("global-interp", "random-without-receivers")

_log = logging.getLogger(__name__)


def budget(config: ModelConfig, ratio: str) -> int:
    """Softmax heads of a plan with, for "3:1", three delta-rule heads for each softmax head.

    Rounded to the nearest number of heads.

    Raises:
      UserError: the ratio is not of this form, or leaves no softmax head.
    """
    parts = re.fullmatch(r"(\d+):(\d+)", ratio)
    if parts is None or int(parts[2]) == 0:
        raise UserError(f"ratio {ratio!r} must read delta-rule heads : softmax heads, such as 3:1")
    linear, softmax = int(parts[1]), int(parts[2])
    heads = config.layers * config.query_heads
    count = round(heads * softmax / (linear + softmax))
    if count == 0:
        raise UserError(f"ratio {ratio} leaves no softmax head of {heads}; use a smaller one")
    return count


def allocate(
    scores: HeadScores | None,
    config: ModelConfig,
    strategy: str = "global-interp",
    *,
    fa_heads: int,
    seed: int = 0,
    one_per_layer: bool = True,
) -> HeadPlan:
    """Chooses `fa_heads` query heads that keep softmax attention.

    Strategies:
      global-interp: the best of all layers by `ranking`. With `one_per_layer` each layer keeps at
        least its best head, and a log line says where that changed the choice.
      global-random: a uniform draw over all heads; a layer may end up with none, as in the paper.
      fixed: the same drawn indices in every layer.
      random-without-receivers: a uniform draw over the heads that are no receivers; a layer may
        end up with none. A control that says what is lost when every receiver is missed.

    Args:
      scores: may be None for global-random and fixed.
      config: of the teacher.
      strategy: one of the above.
      fa_heads: of all layers together, see `budget`.
      seed: for draws, and for ties of global-interp.
      one_per_layer: read by global-interp only.

    Raises:
      UserError: the strategy, the budget or the scores do not suit the model.
    """
    _check(scores, config, strategy, fa_heads)
    layers, heads = config.layers, config.query_heads
    if strategy == "global-interp":
        ranked = ranking(scores, kv_heads=config.kv_heads, seed=seed)
        chosen = _best(ranked, layers, fa_heads) if one_per_layer else ranked[:fa_heads]
    elif strategy == "fixed":
        drawn = np.random.default_rng(seed).permutation(heads)[: fa_heads // layers]
        chosen = [(layer, int(head)) for layer in range(layers) for head in drawn]
    else:
        allowed = random_order(layers, heads, seed)
        if strategy == "random-without-receivers":
            allowed = [head for head in allowed if not scores.receivers_LN[head]]
        if len(allowed) < fa_heads:
            raise UserError(
                f"{strategy}: only {len(allowed)} heads are no receivers, the budget is {fa_heads}"
            )
        chosen = allowed[:fa_heads]
    return HeadPlan(
        fa_heads=_by_layer(chosen, layers),
        query_heads=heads,
        kv_heads=config.kv_heads,
        strategy=strategy,
    )


def receivers_kept(scores: HeadScores, plan: HeadPlan) -> int:
    """How many receivers stay softmax in a plan."""
    return sum(
        int(scores.receivers_LN[layer, head])
        for layer, heads in enumerate(plan.fa_heads)
        for head in heads
    )


def _check(scores: HeadScores | None, config: ModelConfig, strategy: str, fa_heads: int) -> None:
    layers, heads = config.layers, config.query_heads
    if strategy not in STRATEGIES:
        raise UserError(f"strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    if not 0 < fa_heads <= layers * heads:
        raise UserError(f"a budget of {fa_heads} softmax heads must be 1 to {layers * heads}")
    if scores is None and strategy in _NEED_SCORES:
        raise UserError(f"strategy {strategy} needs head scores")
    if scores is not None and (scores.layers, scores.query_heads) != (layers, heads):
        raise UserError(
            f"the scores are for {scores.layers} layers of {scores.query_heads} heads, the model "
            f"has {layers} of {heads}; score this model"
        )
    if strategy == "fixed" and fa_heads % layers:
        raise UserError(
            f"strategy fixed needs a budget that is a multiple of {layers} layers, not {fa_heads}"
        )


def _best(ranked: list[Head], layers: int, count: int) -> list[Head]:
    """The first `count` heads of the ranking, at least one in each layer."""
    if count < layers:
        raise UserError(
            f"{count} softmax heads are fewer than {layers} layers; raise the budget, or allow "
            "layers without softmax heads"
        )
    first = {layer: next(h for h in ranked if h[0] == layer) for layer in range(layers)}
    others = [head for head in ranked if head not in first.values()]
    chosen = [*first.values(), *others[: count - layers]]
    forced = sorted(set(chosen) - set(ranked[:count]))
    if forced:
        _log.warning(
            "at least one softmax head per layer: layer and head %s replace %s",
            ", ".join(map(str, forced)),
            ", ".join(map(str, sorted(set(ranked[:count]) - set(chosen)))),
        )
    return chosen


def _by_layer(chosen: Iterable[Head], layers: int) -> tuple[tuple[int, ...], ...]:
    chosen = sorted(chosen)
    return tuple(tuple(n for l, n in chosen if l == layer) for layer in range(layers))
