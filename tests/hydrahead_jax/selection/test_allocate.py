import dataclasses
import logging

import numpy as np
import pytest

from hydrahead_jax.config import FullAttention, Hydra, ModelConfig, qwen3
from hydrahead_jax.errors import UserError
from hydrahead_jax.selection import STRATEGIES, HeadScores, allocate, budget, receivers_kept
from hydrahead_jax.selection.plans.strategies import BY_LAYER, INTERP
from hydrahead_jax.selection.scores.ranking import ranking
from tests.hydrahead_jax.selection.made_scores import made_scores
from tests.toy_config import toy_config

SHAPES = [(2, 4, 2), (4, 8, 4), (3, 6, 1), (28, 16, 8)]
DRAWS = ("global-random", "layer-random", "fixed", "random-without-receivers")


def _hybrid() -> tuple[ModelConfig, HeadScores]:
    """Makes four layers of six heads on three KV heads; ten of the heads are softmax."""
    fa_heads = ((0, 1, 2, 3), (2, 3), (2, 3, 4), (3,))
    config = dataclasses.replace(
        toy_config(4, 6, 3), mixers=tuple(Hydra(fa_heads=heads) for heads in fa_heads)
    )
    softmax_LN = np.zeros((4, 6), bool)
    for layer, heads in enumerate(fa_heads):
        softmax_LN[layer, list(heads)] = True
    effect_LN = np.random.default_rng(0).random((4, 6)) / 200
    return config, made_scores([effect_LN], softmax_LN=softmax_LN)


def _scores(effect_LN) -> HeadScores:
    return made_scores([effect_LN])


def _random_scores(config: ModelConfig) -> HeadScores:
    effect_LN = np.random.default_rng(0).exponential(
        0.003, size=(config.layers, config.query_heads)
    )
    return _scores(np.clip(effect_LN, 0, 1))


def test_budget():
    assert budget(qwen3("1.7b"), "3:1") == 112
    assert budget(qwen3("1.7b"), "7:1") == 56
    assert budget(toy_config(4, 8, 4), "3:1") == 8
    assert budget(toy_config(3, 6, 1), "0:1") == 18
    for ratio in ("3", "3:0", "a:b", "3:1:1", "-1:2", ""):
        with pytest.raises(UserError, match="such as 3:1"):
            budget(toy_config(4, 8, 4), ratio)
    with pytest.raises(UserError, match="leaves no softmax head of 8"):
        budget(toy_config(2, 4, 2), "31:1")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plan_has_the_budget_the_shape_and_the_seed(strategy, shape):
    config = toy_config(*shape)
    scores = _random_scores(config)
    fa_heads = config.layers * max(1, config.query_heads // 4)
    plan = allocate(scores, config, strategy, fa_heads=fa_heads, seed=1)
    assert plan.count == fa_heads and plan.strategy == strategy
    assert len(plan.student(config).mixers) == config.layers
    assert plan == allocate(scores, config, strategy, fa_heads=fa_heads, seed=1)
    everything = allocate(
        _scores(np.zeros(shape[:2])), config, strategy, fa_heads=shape[0] * shape[1]
    )
    assert everything.fa_heads == (tuple(range(shape[1])),) * shape[0]


@pytest.mark.parametrize("strategy", DRAWS)
def test_draws_differ_by_seed(strategy):
    config = toy_config(4, 8, 4)
    scores = _scores(np.zeros((4, 8)))
    plans = {allocate(scores, config, strategy, fa_heads=8, seed=s).fa_heads for s in range(10)}
    assert len(plans) > 5


@pytest.mark.parametrize("strategy", INTERP)
def test_equal_scores_are_drawn_by_seed_and_share_kv_heads(strategy):
    """The two heads of a layer share a KV head in every draw; the seed says which one."""
    config = toy_config(4, 8, 4)
    scores = _scores(np.zeros((4, 8)))
    plans = [allocate(scores, config, strategy, fa_heads=8, seed=s) for s in range(10)]
    assert len({plan.fa_heads for plan in plans}) > 5
    if strategy != "global-interp-C":
        assert all(plan.surviving_kv_heads == 4 for plan in plans)


def test_global_interp_keeps_the_best_and_one_per_layer(caplog):
    config = toy_config(3, 4, 4)
    scores = _scores([[0.9, 0.8, 0.7, 0.6], [0.0, 0.0, 0.02, 0.0], [0.0, 0.5, 0.0, 0.0]])
    free = allocate(scores, config, "global-interp", fa_heads=4)
    assert free.fa_heads == ((0, 1, 2, 3), (), ())
    with caplog.at_level(logging.WARNING):
        plan = allocate(scores, config, fa_heads=4)
    assert plan.strategy == "global-interp-C" and plan.fa_heads == ((0, 1), (2,), (1,))
    assert "the best 4 heads would leave none in layers [1, 2]" in caplog.text
    assert "layer and head: [(1, 2), (2, 1)]" in caplog.text


def test_no_log_where_the_constraint_does_not_bind(caplog):
    config = toy_config(2, 4, 4)
    scores = _scores([[0.9, 0.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.1]])
    with caplog.at_level(logging.INFO):
        assert allocate(scores, config, fa_heads=3).fa_heads == ((0,), (2, 3))
    assert not caplog.text


def test_layer_interp_takes_the_best_of_each_layer():
    config = toy_config(5, 6, 3)
    scores = _random_scores(config)
    plan = allocate(scores, config, "layer-interp", fa_heads=15)
    best = [tuple(sorted(np.argsort(score_N)[-3:].tolist())) for score_N in scores.mean_abs_LN]
    assert list(plan.fa_heads) == best


def test_layer_random_draws_as_many_in_each_layer():
    config = toy_config(4, 8, 4)
    plans = [allocate(None, config, "layer-random", fa_heads=12, seed=s) for s in range(5)]
    assert all({len(heads) for heads in plan.fa_heads} == {3} for plan in plans)
    assert all(len(set(plan.fa_heads)) > 1 for plan in plans)


def test_fixed_takes_the_same_heads_everywhere():
    plan = allocate(None, toy_config(4, 8, 4), "fixed", fa_heads=8, seed=2)
    assert len(set(plan.fa_heads)) == 1 and len(plan.fa_heads[0]) == 2


def test_global_random_is_not_constrained():
    config = toy_config(4, 8, 4)
    plans = [allocate(None, config, "global-random", fa_heads=4, seed=s) for s in range(10)]
    assert any(() in plan.fa_heads for plan in plans)


def test_random_without_receivers_misses_every_one():
    config = toy_config(2, 4, 2)
    scores = _scores([[0.0, 0.5, 0.01, 0.0], [0.009, 0.0, 0.0, 0.2]])
    for seed in range(10):
        plan = allocate(scores, config, "random-without-receivers", fa_heads=4, seed=seed)
        assert receivers_kept(scores, plan) == 0
    assert receivers_kept(scores, allocate(scores, config, fa_heads=4)) == 3
    with pytest.raises(UserError, match="has 5 heads to choose from and the budget is 6"):
        allocate(scores, config, "random-without-receivers", fa_heads=6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_softmax_heads_of_a_hybrid_are_kept(strategy):
    config, scores = _hybrid()
    for fa_heads in (4, 8, 10):
        if strategy in BY_LAYER and fa_heads > 4:
            with pytest.raises(UserError, match="and at most 4, not"):
                allocate(scores, config, strategy, fa_heads=fa_heads)
            continue
        plan = allocate(scores, config, strategy, fa_heads=fa_heads, seed=3)
        plan.check(config)
        assert plan.count == fa_heads
    if strategy in INTERP and strategy not in BY_LAYER:
        best = ranking(scores, kv_heads=3)[:4]
        plan = allocate(scores, config, "global-interp", fa_heads=4)
        assert sum((layer, n) in best for layer in range(4) for n in plan.fa_heads[layer]) == 4


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"strategy": "best"}, "strategy 'best' must be one of global-interp-C, global-interp, "),
        ({"fa_heads": 0}, "a budget of 0 softmax heads must be 1 to 8"),
        ({"fa_heads": 9, "strategy": "global-random"}, "of 9 softmax heads must be 1 to 8"),
        ({"fa_heads": 1}, "1 softmax heads are fewer than 1 in each of 2 layers"),
        ({"fa_heads": 2, "tensor_multiple": 2}, "fewer than 2 in each of 2 layers"),
        ({"fa_heads": 3, "strategy": "fixed"}, "a multiple of 2, as many heads in each of 2 l"),
        ({"fa_heads": 3, "strategy": "layer-interp"}, "multiple of 2, .* at most 8, not 3"),
        ({"strategy": "layer-random", "tensor_multiple": 4}, "multiple of 8, .* not 4"),
        ({"tensor_multiple": 3}, "tensor_multiple=3 must divide the 4 query heads"),
        ({"tensor_multiple": 0}, "tensor_multiple=0 must divide"),
        ({"fa_heads": 5, "tensor_multiple": 2}, "5 heads must be a multiple of 2"),
        ({"strategy": "global-random", "tensor_multiple": 2}, "use layer-random"),
        ({"fa_heads": None}, "needs a budget: fa_heads, kv_bytes, or both"),
        ({"kv_bytes": 0}, "kv_bytes=0 must be at least 1"),
        ({"kv_slack": 1.0}, "kv_slack=1.0 must be at least 0 and below 1"),
        ({"kv_slack": -0.1}, "kv_slack=-0.1 must be"),
        ({"kv_slack": float("nan")}, "kv_slack=nan must be"),
        ({"kv_slack": 0.1, "kv_bytes": 99}, "leave out kv_bytes"),
        ({"kv_slack": 0.1, "strategy": "fixed"}, "does not look at KV heads"),
        ({"kv_bytes": 99, "strategy": "fixed"}, "fa_heads or kv_bytes, not both"),
        ({"kv_bytes": 99, "kv_dtype": "half-byte"}, "'half-byte' is not a dtype"),
    ],
)
def test_wrong_requests_are_user_errors(request_, message):
    with pytest.raises(UserError, match=message):
        allocate(_scores(np.zeros((2, 4))), toy_config(2, 4, 2), **({"fa_heads": 4} | request_))


@pytest.mark.parametrize("strategy", [*INTERP, "random-without-receivers"])
def test_strategies_that_need_scores_say_so(strategy):
    with pytest.raises(UserError, match=f"strategy {strategy} needs head scores"):
        allocate(None, toy_config(2, 4, 2), strategy, fa_heads=4)


def test_scores_of_another_model_are_a_user_error():
    with pytest.raises(UserError, match="scores are for 3 layers of 4 heads, the model has 2 of 4"):
        allocate(_scores(np.zeros((3, 4))), toy_config(2, 4, 2), fa_heads=4)
    config, scores = _hybrid()
    with pytest.raises(UserError, match="layer 0: the scores are for other softmax heads"):
        allocate(scores, toy_config(4, 6, 3), fa_heads=4)
    with pytest.raises(UserError, match="layer 0: the scores are for other softmax heads"):
        allocate(_scores(np.zeros((4, 6))), config, fa_heads=4)


def test_a_layer_without_softmax_heads_cannot_keep_one():
    config = dataclasses.replace(toy_config(2, 4, 2), mixers=(FullAttention(), Hydra(fa_heads=())))
    scores = made_scores(np.zeros((1, 2, 4)), softmax_LN=[[True] * 4, [False] * 4])
    with pytest.raises(UserError, match=r"has 0 softmax heads, .* use global-interp"):
        allocate(scores, config, fa_heads=2)
    assert allocate(scores, config, "global-interp", fa_heads=2).fa_heads[1] == ()
    config, scores = _hybrid()
    with pytest.raises(UserError, match=r"has 1 softmax heads, .* at least 2 in every layer"):
        allocate(scores, config, fa_heads=8, tensor_multiple=2)
