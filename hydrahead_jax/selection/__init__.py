"""Finds the heads that retrieval needs: probes, scores, head plans and checks on them."""

from hydrahead_jax.selection.pipeline import Selection, select
from hydrahead_jax.selection.plans.allocate import allocate, receivers_kept, trade_off
from hydrahead_jax.selection.plans.kv_aware import PlanCost, TradeOff, plan_cost
from hydrahead_jax.selection.plans.request import budget
from hydrahead_jax.selection.plans.strategies import STRATEGIES
from hydrahead_jax.selection.scores.scores import HeadScores
from hydrahead_jax.selection.settings import SelectionSettings

__all__ = [
    "STRATEGIES",
    "HeadScores",
    "PlanCost",
    "Selection",
    "SelectionSettings",
    "TradeOff",
    "allocate",
    "budget",
    "plan_cost",
    "receivers_kept",
    "select",
    "trade_off",
]
