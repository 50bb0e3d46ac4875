"""Makes a head plan from head scores and a budget."""

import logging

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan, kv_head_bytes
from hydrahead_jax.selection.plans.kv_aware import KvAware, TradeOff, plan_cost
from hydrahead_jax.selection.plans.request import Request
from hydrahead_jax.selection.plans.strategies import (
    INTERP,
    first_heads,
    first_kv_heads,
    steps,
    too_small,
)
from hydrahead_jax.selection.scores.ranking import Head, ranking
from hydrahead_jax.selection.scores.scores import HeadScores

DEFAULT = "global-interp-C"

_log = logging.getLogger(__name__)


def allocate(
    scores: HeadScores | None,
    config: ModelConfig,
    strategy: str = DEFAULT,
    *,
    fa_heads: int | None = None,
    kv_bytes: int | None = None,
    kv_slack: float | None = None,
    kv_dtype: str = "bfloat16",
    tensor_multiple: int = 1,
    seed: int = 0,
) -> HeadPlan:
    """Chooses the query heads that keep softmax attention.

    Strategies:
      global-interp-C: the best of all layers by `ranking`, at least one in each layer; a log line
        says where that changes the choice.
      global-interp: the best of all layers; a layer may end up with none, as in the paper.
      layer-interp: the best of each layer, as many in each.
      global-random: a uniform draw over all heads; a layer may end up with none.
      layer-random: a uniform draw in each layer, as many in each.
      fixed: the same drawn indices in every layer.
      random-without-receivers: a uniform draw over the heads that are no receivers. A control that
        says what is lost when every receiver is missed.

    With `kv_slack` or `kv_bytes` the first three choose by KV heads too, exactly: of all plans
    that the strategy allows, the fewest KV heads within the slack, or the most score mass within
    the bytes. The others keep as much of their order as the bytes allow.

    Args:
      scores: may be None for draws that do not look at them.
      config: of the model. Only its softmax heads are chosen.
      strategy: one of the above.
      fa_heads: softmax heads of all layers together, see `budget`.
      kv_bytes: keys and values that a token may add to the cache, in all layers. Without
        `fa_heads`, a KV head that is read keeps all its heads.
      kv_slack: the share of the best plan's score mass that may go to save KV heads.
      kv_dtype: dtype of the cache.
      tensor_multiple: divides the softmax heads of every layer, and so the delta-rule heads; for
        all but the uniform draws over all heads.
      seed: seed of draws and ties.

    Raises:
      UserError: the strategy, the budget or the scores do not suit the model.
    """
    request = Request(
        strategy=strategy,
        fa_heads=fa_heads,
        kv_bytes=kv_bytes,
        kv_slack=kv_slack,
        kv_dtype=kv_dtype,
        tensor_multiple=tensor_multiple,
        seed=seed,
    )
    request.check(scores, config)
    kv_heads = None if kv_bytes is None else kv_bytes // kv_head_bytes(config, kv_dtype)
    if request.by_search:
        chosen = _searched(request, scores, config, kv_heads)
    else:
        ordered = steps(strategy, scores, config, seed=seed, tensor_multiple=tensor_multiple)
        if kv_heads is None:
            chosen = first_heads(ordered, fa_heads, strategy)
        else:
            chosen = first_kv_heads(ordered, kv_heads, config, strategy)
    if strategy == "global-interp-C":
        _log_where_it_binds(ranking(scores, kv_heads=config.kv_heads, seed=seed), chosen)
    return _plan(chosen, config, strategy)


def trade_off(
    scores: HeadScores,
    config: ModelConfig,
    strategy: str = DEFAULT,
    *,
    fa_heads: int | None,
    tensor_multiple: int = 1,
) -> TradeOff:
    """Returns the most score mass that plans of each number of KV heads can keep.

    Args:
      scores: of the model.
      config: of the model.
      strategy: global-interp-C, global-interp or layer-interp.
      fa_heads: as for `allocate`; None leaves the number open, but for layer-interp.
      tensor_multiple: as for `allocate`.

    Raises:
      UserError: as `allocate`.
    """
    if strategy not in INTERP or (strategy == "layer-interp" and fa_heads is None):
        raise UserError(
            f"strategy {strategy} has no trade-off, or none without fa_heads; use global-interp-C "
            "or global-interp"
        )
    request = Request(
        strategy=strategy,
        fa_heads=fa_heads,
        kv_bytes=None if fa_heads else kv_head_bytes(config) * config.layers * config.kv_heads,
        tensor_multiple=tensor_multiple,
    )
    request.check(scores, config)
    return _search(request, scores, config, None).trade_off()


def receivers_kept(scores: HeadScores, plan: HeadPlan) -> int:
    """Counts the receivers that stay softmax in a plan."""
    return sum(
        int(scores.receivers_LN[layer, head])
        for layer, heads in enumerate(plan.fa_heads)
        for head in heads
    )


def _searched(
    request: Request, scores: HeadScores, config: ModelConfig, kv_heads: int | None
) -> list[Head]:
    search = _search(request, scores, config, kv_heads)
    if kv_heads is not None and search.fewest > kv_heads:
        raise too_small(kv_heads, search.fewest, request.strategy)
    if request.kv_slack is not None:
        chosen = search.least_kv(request.kv_slack)
    else:
        chosen = search.most_mass(search.most if kv_heads is None else kv_heads)
    if request.fa_heads is not None:
        naive = _plan(search.most_mass(search.most), config, request.strategy)
        _log_saving(scores, config, _plan(chosen, config, request.strategy), naive)
    return chosen


def _search(
    request: Request, scores: HeadScores, config: ModelConfig, kv_heads: int | None
) -> KvAware:
    counts = request.counts(config, kv_heads)
    search = KvAware(scores, config, counts=counts, fa_heads=request.fa_heads, seed=request.seed)
    if search.fewest is None:
        raise UserError(
            f"no plan of strategy {request.strategy} has {request.fa_heads} softmax heads and a "
            f"multiple of {request.tensor_multiple} in every layer of this model; choose another "
            "budget"
        )
    return search


def _plan(chosen: list[Head], config: ModelConfig, strategy: str) -> HeadPlan:
    layers = [sorted(n for l, n in chosen if l == layer) for layer in range(config.layers)]
    return HeadPlan(
        fa_heads=tuple(map(tuple, layers)),
        query_heads=config.query_heads,
        kv_heads=config.kv_heads,
        strategy=strategy,
    )


def _log_where_it_binds(ranked: list[Head], chosen: list[Head]) -> None:
    kept = {layer for layer, _ in ranked[: len(chosen)]}
    forced = sorted(head for head in chosen if head[0] not in kept)
    if forced:
        _log.warning(
            "at least one softmax head per layer: the best %d heads would leave none in layers %s; "
            "kept there, layer and head: %s",
            len(chosen),
            sorted({layer for layer, _ in forced}),
            forced,
        )


def _log_saving(scores: HeadScores, config: ModelConfig, plan: HeadPlan, naive: HeadPlan) -> None:
    cost, other = plan_cost(scores, config, plan), plan_cost(scores, config, naive)
    _log.info(
        "KV heads: %d, %d by score alone; score mass: %.1f %%, %.1f %% by score alone",
        cost.kv_heads,
        other.kv_heads,
        100 * cost.score_mass,
        100 * other.score_mass,
    )
