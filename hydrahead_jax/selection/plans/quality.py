"""Compares what plans keep and cost in cache: naive, and aware of KV heads."""

from typing import NamedTuple

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan, kv_head_bytes
from hydrahead_jax.selection.plans.allocate import allocate, trade_off
from hydrahead_jax.selection.plans.kv_aware import PlanCost, TradeOff, plan_cost
from hydrahead_jax.selection.plans.request import budget
from hydrahead_jax.selection.scores.ranking import ranking
from hydrahead_jax.selection.scores.scores import HeadScores

RATIOS = ("1:1", "3:1", "7:1", "15:1")
SLACK = 0.02
_STRATEGY = "global-interp"


class Budget(NamedTuple):
    """Compares two plans of as many heads.

    Attributes:
      ratio: delta-rule heads to softmax heads.
      naive: plan of the best heads.
      aware: plan on the fewest KV heads that keep all but 2 % of that score mass.
    """

    ratio: str
    naive: PlanCost
    aware: PlanCost


class Quality(NamedTuple):
    """Says what plans of a model keep and cost.

    Attributes:
      naive: the best head, the best two, and so on.
      aware: the most score mass for each number of KV heads, however many query heads that takes.
      kv_head_bytes: bytes that one KV head adds to the cache with every token.
      budgets: two plans for each of some ratios.
      chosen: the plan.
    """

    naive: list[PlanCost]
    aware: TradeOff
    kv_head_bytes: int
    budgets: list[Budget]
    chosen: PlanCost


def plan_quality(
    scores: HeadScores, config: ModelConfig, plan: HeadPlan, *, dtype: str = "bfloat16"
) -> Quality:
    """Returns score mass and KV bytes per token of plans without a least number of heads per layer.

    `dtype` is that of the cache.
    """
    bytes_each = kv_head_bytes(config, dtype)
    return Quality(
        naive=_naive(scores, config, bytes_each),
        aware=trade_off(scores, config, _STRATEGY, fa_heads=None),
        kv_head_bytes=bytes_each,
        budgets=[b for ratio in RATIOS if (b := _budget(scores, config, ratio, dtype))],
        chosen=plan_cost(scores, config, plan, dtype),
    )


def _naive(scores: HeadScores, config: ModelConfig, bytes_each: int) -> list[PlanCost]:
    total, kept, read, costs = float(scores.score_LN.sum()) or 1.0, 0.0, set(), []
    score_LN = scores.score_LN
    for count, (layer, head) in enumerate(ranking(scores, kv_heads=config.kv_heads), start=1):
        kept += float(score_LN[layer, head])
        read.add((layer, config.kv_head(head)))
        costs.append(PlanCost(count, len(read), len(read) * bytes_each, kept / total))
    return costs


def _budget(scores: HeadScores, config: ModelConfig, ratio: str, dtype: str) -> Budget | None:
    """Returns both plans of a ratio; None where the model has no such plan."""
    try:
        count = budget(config, ratio)
        plans = [
            allocate(scores, config, _STRATEGY, fa_heads=count, kv_slack=slack, kv_dtype=dtype)
            for slack in (None, SLACK)
        ]
    except UserError:
        return None
    return Budget(ratio, *(plan_cost(scores, config, plan, dtype) for plan in plans))
