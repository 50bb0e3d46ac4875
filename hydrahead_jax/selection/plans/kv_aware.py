"""Chooses plans by score mass and by the KV heads they read, which is their cost in cache."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection.plans.search import PlanSearch
from hydrahead_jax.selection.scores.ranking import Head, levels, ranking
from hydrahead_jax.selection.scores.scores import HeadScores


class PlanCost(NamedTuple):
    """Says what a plan costs and keeps.

    Attributes:
      fa_heads: softmax heads of all layers.
      kv_heads: KV heads of all layers that they read.
      kv_bytes_per_token: what a token adds to the cache.
      score_mass: share of the scores of all heads that stays softmax; 0 where all are 0.
    """

    fa_heads: int
    kv_heads: int
    kv_bytes_per_token: int
    score_mass: float


class TradeOff(NamedTuple):
    """Says how much score mass plans keep for each number of KV heads.

    Attributes:
      kv_heads_X: KV heads that a plan reads, ascending.
      score_mass_X: the most that a plan with so many KV heads keeps, as a share of all.
    """

    kv_heads_X: Int[np.ndarray, " X"]
    score_mass_X: Float[np.ndarray, " X"]


def plan_cost(
    scores: HeadScores, config: ModelConfig, plan: HeadPlan, dtype: str = "bfloat16"
) -> PlanCost:
    """Returns what a plan keeps and costs; `dtype` is that of the cache."""
    kept = sum(
        scores.score_LN[layer, list(heads)].sum() for layer, heads in enumerate(plan.fa_heads)
    )
    total = float(scores.score_LN.sum())
    return PlanCost(
        fa_heads=plan.count,
        kv_heads=plan.surviving_kv_heads,
        kv_bytes_per_token=plan.kv_bytes_per_token(config, dtype),
        score_mass=float(kept) / (total or 1.0),
    )


class KvAware:
    """Finds the plans of most score mass for each number of KV heads.

    Scores count to 1e-5. Among plans of equal mass the heads with the better places in `ranking`
    win, and then a seeded draw.

    Args:
      scores: of the model.
      config: of the model.
      counts: softmax heads that a layer may keep.
      fa_heads: softmax heads of all layers; None leaves them open, and then a KV head that is read
        keeps all its heads that `counts` allows.
      seed: seed of the draws.

    Attributes:
      most: KV heads of the model.
    """

    def __init__(
        self,
        scores: HeadScores,
        config: ModelConfig,
        *,
        counts: Sequence[int],
        fa_heads: int | None,
        seed: int = 0,
    ):
        ranked = ranking(scores, kv_heads=config.kv_heads, seed=seed)
        self._base = len(ranked) * (len(ranked) + 1) // 2 + 1
        self._total = int(levels(scores)[0].sum())
        self._seed = seed
        values = _values(scores, config, ranked, self._base)
        self.most = config.layers * config.kv_heads
        self._search = PlanSearch(values, counts, fa_heads, self.most)

    @property
    def _mass_X(self) -> np.ndarray:
        return self._search.best_X // self._base

    @property
    def fewest(self) -> int | None:
        """Returns the fewest KV heads of a plan that keeps a head; None if there is no plan."""
        possible = np.flatnonzero(self._search.best_X > 0)
        return int(possible[0]) if len(possible) else None

    def most_mass(self, kv_heads: int) -> list[Head]:
        """Returns the heads of most score mass on at most so many KV heads, at least `fewest`."""
        return self._search.heads(min(kv_heads, self.most), np.random.default_rng(self._seed))

    def least_kv(self, slack: float) -> list[Head]:
        """Returns the heads on the fewest KV heads that keep 1 - slack of the best plan's mass."""
        enough_X = (self._search.best_X > 0) & (self._mass_X >= (1 - slack) * self._mass_X[-1])
        return self.most_mass(int(np.flatnonzero(enough_X)[0]))

    def trade_off(self) -> TradeOff:
        """Returns all plans from the smallest to the first that keeps the most."""
        last = int(np.argmax(self._mass_X == self._mass_X[-1]))
        kv_heads_X = np.arange(self.fewest, max(last, self.fewest) + 1)
        return TradeOff(kv_heads_X, self._mass_X[kv_heads_X] / max(self._total, 1))


def _values(
    scores: HeadScores, config: ModelConfig, ranked: list[Head], base: int
) -> list[list[dict[int, int]]]:
    """Returns one integer per head: score mass first, then places in the ranking."""
    mass_LN = levels(scores)[0]
    values = [[{} for _ in range(config.kv_heads)] for _ in range(config.layers)]
    for place, (layer, head) in enumerate(ranked):
        value = int(mass_LN[layer, head]) * base + len(ranked) - place
        values[layer][config.kv_head(head)][head] = value
    return values
