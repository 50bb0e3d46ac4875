"""Compares KV-aware plans with all plans of small models."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from hydrahead_jax.config import Hydra, ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.selection import HeadScores, allocate, plan_cost, trade_off
from hydrahead_jax.selection.plans.strategies import INTERP, STRATEGIES
from hydrahead_jax.selection.scores.ranking import levels, ranking
from tests.hydrahead_jax.selection.made_scores import made_scores
from tests.toy_config import toy_config

SHAPES = [(3, 4, 2), (2, 6, 3), (4, 3, 1)]
KV_HEAD_BYTES = 2 * 4 * 2


def _scores(shape, kind: str, softmax_LN=None) -> HeadScores:
    rng = np.random.default_rng(sum(shape))
    draw = {
        "apart": lambda size: rng.random(size),
        "few": lambda size: rng.random(size) * (rng.random(size) < 0.4),
        "steps": lambda size: rng.integers(3, size=size) / 4,
        "equal": lambda size: np.full(size, 0.5),
    }[kind]
    return made_scores([draw(shape[:2])], softmax_LN=softmax_LN)


class _AllPlans:
    """Lists every set of a model's softmax heads, with its score mass."""

    def __init__(self, scores: HeadScores, config: ModelConfig, seed: int = 0):
        ranked = ranking(scores, kv_heads=config.kv_heads, seed=seed)
        self.chosen_XH = np.array(list(itertools.product([0, 1], repeat=len(ranked))), bool)
        self.mass_X = self.chosen_XH @ np.array([levels(scores)[0][head] for head in ranked])
        self.places_X = self.chosen_XH @ np.arange(len(ranked), 0, -1)
        read = np.array([[l, config.kv_head(n)] for l, n in ranked])
        groups = [self.chosen_XH[:, (read == kv).all(1)].any(1) for kv in np.unique(read, axis=0)]
        self.kv_X = np.sum(groups, axis=0)
        layers = np.arange(config.layers)[:, None]
        self.layers_XL = self.chosen_XH @ (layers == read[:, 0]).T.astype(int)

    def allowed(self, strategy: str, fa_heads: int | None, multiple: int) -> np.ndarray:
        allowed_X = (self.layers_XL % multiple == 0).all(axis=1)
        if strategy == "global-interp-C":
            allowed_X &= (self.layers_XL > 0).all(axis=1)
        if strategy == "layer-interp":
            allowed_X &= (self.layers_XL == self.layers_XL[:, :1]).all(axis=1)
        if fa_heads is not None:
            allowed_X &= self.layers_XL.sum(axis=1) == fa_heads
        return allowed_X

    def best(self, allowed_X: np.ndarray) -> tuple[int, int]:
        """Returns the most mass, and the best places among plans of that mass."""
        top_X = allowed_X & (self.mass_X == self.mass_X[allowed_X].max())
        return int(self.mass_X[top_X][0]), int(self.places_X[top_X].max())


def _worth(plan, scores, config) -> tuple[int, int]:
    ranked = ranking(scores, kv_heads=config.kv_heads)
    chosen = [(layer, head) for layer, heads in enumerate(plan.fa_heads) for head in heads]
    mass = sum(int(levels(scores)[0][head]) for head in chosen)
    return mass, sum(len(ranked) - ranked.index(head) for head in chosen)


def _budgets(shape):
    """Yields strategies, multiples and every third number of heads that suits a shape."""
    layers, heads, _ = shape
    multiples = [m for m in range(1, heads + 1) if heads % m == 0]
    for strategy, multiple in itertools.product(INTERP, multiples):
        step = multiple * layers if strategy == "layer-interp" else multiple
        least = 0 if strategy == "global-interp" else multiple * layers
        for fa_heads in range(max(step, least), layers * heads + 1, 3 * step):
            yield strategy, multiple, fa_heads


@pytest.mark.parametrize("kind", ["apart", "steps", "equal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fewest_kv_heads_within_the_slack_equal_brute_force(shape, kind):
    config, scores = toy_config(*shape), _scores(shape, kind)
    plans = _AllPlans(scores, config)
    for strategy, multiple, fa_heads in _budgets(shape):
        allowed_X = plans.allowed(strategy, fa_heads, multiple)
        most, _ = plans.best(allowed_X)
        how = {"fa_heads": fa_heads, "tensor_multiple": multiple}
        naive = allocate(scores, config, strategy, **how)
        assert _worth(naive, scores, config) == plans.best(allowed_X)
        for slack in (0.0, 0.2):
            plan = allocate(scores, config, strategy, kv_slack=slack, **how)
            plan.check(config, tensor_multiple=multiple)
            enough_X = allowed_X & (plans.mass_X >= (1 - slack) * most)
            fewest = plans.kv_X[enough_X].min()
            assert plan.count == fa_heads and plan.surviving_kv_heads == fewest
            within_X = allowed_X & (plans.kv_X <= fewest)
            assert _worth(plan, scores, config) == plans.best(within_X)


@pytest.mark.parametrize("kind", ["few", "equal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_most_mass_within_the_bytes_equals_brute_force(shape, kind):
    config, scores = toy_config(*shape), _scores(shape, kind)
    plans = _AllPlans(scores, config)
    requests = [*_budgets(shape)]
    requests += {(s, m, None) for s, m, _ in requests if s != "layer-interp"}
    for (strategy, multiple, fa_heads), kv_heads in itertools.product(requests, (1, 3, 4)):
        allowed_X = plans.allowed(strategy, fa_heads, multiple)
        within_X = allowed_X & (plans.kv_X <= kv_heads) & (plans.kv_X > 0)
        how = {"fa_heads": fa_heads, "tensor_multiple": multiple}
        how["kv_bytes"] = kv_heads * KV_HEAD_BYTES + 3
        if not within_X.any():
            with pytest.raises(UserError, match=f"pays for {kv_heads} KV heads, the smallest plan"):
                allocate(scores, config, strategy, **how)
            continue
        plan = allocate(scores, config, strategy, **how)
        assert plan.kv_bytes_per_token(config) <= how["kv_bytes"]
        assert fa_heads in (None, plan.count)
        assert _worth(plan, scores, config) == plans.best(within_X)


def test_a_hybrid_keeps_only_softmax_heads():
    fa_heads = ((0, 1, 2, 3), (2, 3), (1, 2, 3))
    config = dataclasses.replace(
        toy_config(3, 4, 2), mixers=tuple(Hydra(fa_heads=heads) for heads in fa_heads)
    )
    softmax_LN = np.array([[n in heads for n in range(4)] for heads in fa_heads])
    scores = _scores((3, 4, 2), "apart", softmax_LN)
    plans = _AllPlans(scores, config)
    for count, multiple in ((3, 1), (5, 1), (9, 1), (6, 2), (8, 2)):
        allowed_X = plans.allowed("global-interp-C", count, multiple)
        how = {"fa_heads": count, "tensor_multiple": multiple, "kv_slack": 0.1}
        plan = allocate(scores, config, **how)
        plan.check(config, tensor_multiple=multiple)
        enough_X = allowed_X & (plans.mass_X >= 0.9 * plans.best(allowed_X)[0])
        assert plan.surviving_kv_heads == plans.kv_X[enough_X].min()
    with pytest.raises(
        UserError, match="no plan of strategy global-interp has 8 softmax heads and a"
    ):
        allocate(scores, config, "global-interp", fa_heads=8, tensor_multiple=4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kv_heads", [4, 6, 11, 16])
def test_every_strategy_fits_into_the_bytes(strategy, kv_heads):
    config, scores = toy_config(4, 8, 4), _scores((4, 8, 4), "apart")
    kv_bytes = kv_heads * 2 * KV_HEAD_BYTES
    if strategy == "random-without-receivers":
        scores = made_scores(np.zeros((1, 4, 8)))
    plan = allocate(scores, config, strategy, kv_bytes=kv_bytes, kv_dtype="float32")
    assert kv_bytes / 2 < plan.kv_bytes_per_token(config, "float32") <= kv_bytes
    if strategy.startswith(("layer", "fixed")):
        assert len({len(heads) for heads in plan.fa_heads}) == 1
    with pytest.raises(UserError, match=rf"pays for 0 KV heads, .* {strategy} reads [14]; raise"):
        allocate(scores, config, strategy, kv_bytes=1)


def test_layer_interp_keeps_as_many_heads_a_layer_as_the_bytes_allow():
    config, scores = toy_config(2, 6, 3), _scores((2, 6, 3), "apart")
    how = {"strategy": "layer-interp", "kv_bytes": 4 * KV_HEAD_BYTES}
    assert [len(heads) for heads in allocate(scores, config, **how).fa_heads] == [4, 4]
    plan = allocate(scores, config, **how, tensor_multiple=3)
    assert [len(heads) for heads in plan.fa_heads] == [3, 3]


@pytest.mark.parametrize("strategy", INTERP)
def test_trade_off_equals_brute_force(strategy):
    config, scores = toy_config(3, 4, 2), _scores((3, 4, 2), "apart")
    plans = _AllPlans(scores, config)
    allowed_X = plans.allowed(strategy, 6, 1)
    curve = trade_off(scores, config, strategy, fa_heads=6)
    first = plans.kv_X[allowed_X].min()
    np.testing.assert_array_equal(curve.kv_heads_X, np.arange(first, curve.kv_heads_X[-1] + 1))
    for kv_heads, share in zip(*curve, strict=True):
        best, _ = plans.best(allowed_X & (plans.kv_X <= kv_heads))
        assert share == pytest.approx(best / plans.mass_X.max(), abs=1e-12)
    assert curve.score_mass_X[-1] == pytest.approx(
        plans.mass_X[allowed_X].max() / plans.mass_X.max()
    )
    with pytest.raises(UserError, match="strategy fixed has no trade-off"):
        trade_off(scores, config, "fixed", fa_heads=6)


def test_trade_off_with_as_many_heads_as_the_kv_heads_serve():
    config, scores = toy_config(3, 4, 2), _scores((3, 4, 2), "apart")
    curve = trade_off(scores, config, fa_heads=None)
    assert curve.kv_heads_X.tolist() == [3, 4, 5, 6] and curve.score_mass_X[-1] == 1.0
    plan = allocate(scores, config, kv_bytes=4 * KV_HEAD_BYTES)
    assert plan_cost(scores, config, plan).score_mass == pytest.approx(
        curve.score_mass_X[1], abs=1e-4
    )


def test_cost_and_saving_are_reported(caplog):
    config = toy_config(2, 4, 2)
    scores = made_scores([[[1.0, 0.0, 0.6, 0.59], [0.5, 0.49, 0.51, 0.0]]])
    naive = allocate(scores, config, fa_heads=4)
    assert naive.fa_heads == ((0, 2, 3), (2,))
    cost = plan_cost(scores, config, naive, "float32")
    assert cost == (4, 3, 3 * 2 * KV_HEAD_BYTES, pytest.approx(2.7 / 3.69))
    with caplog.at_level(logging.INFO):
        plan = allocate(scores, config, fa_heads=4, kv_slack=0.2)
    assert plan.fa_heads == ((2, 3), (0, 1))
    assert "KV heads: 2, 3 by score alone; score mass: 59.1 %, 73.2 % by score alone" in caplog.text
    nothing = made_scores(np.zeros((1, 2, 4)))
    assert plan_cost(nothing, config, plan).score_mass == 0.0
    assert not trade_off(nothing, config, fa_heads=4).score_mass_X.any()


def test_equal_plans_are_drawn_by_the_seed():
    config, scores = toy_config(4, 4, 2), _scores((4, 4, 2), "equal")
    plans = [
        allocate(scores, config, "global-interp", fa_heads=4, kv_slack=0.0, seed=seed)
        for seed in range(12)
    ]
    assert {plan.surviving_kv_heads for plan in plans} == {2}
    assert len({plan.fa_heads for plan in plans}) > 4
    assert plans[3] == allocate(scores, config, "global-interp", fa_heads=4, kv_slack=0.0, seed=3)
