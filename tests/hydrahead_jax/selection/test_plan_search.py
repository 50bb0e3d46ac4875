"""Compares the search with all sets of heads of small models."""

import itertools

import numpy as np
import pytest

from hydrahead_jax.selection.plans import search as plan_search
from hydrahead_jax.selection.plans.search import PlanSearch

SHAPES = [(3, 4, 2), (2, 6, 2), (2, 6, 3), (4, 3, 1), (1, 8, 8)]


def _values(shape, kind, rng) -> list[list[dict[int, int]]]:
    """Draws the values of the heads that may be chosen, by layer and KV head."""
    layers, heads, kv_heads = shape
    draw = {
        "apart": lambda: int(rng.integers(10**12)),
        "tied": lambda: int(rng.integers(3)),
        "zero": lambda: 0,
    }[kind]
    values = [[{} for _ in range(kv_heads)] for _ in range(layers)]
    for layer, head in np.ndindex(layers, heads):
        if kind != "apart" or rng.random() < 0.9:
            values[layer][head * kv_heads // heads][head] = draw()
    return values


def _all_sets(values):
    """Returns the value, the KV heads and each layer's heads of every set of heads."""
    worth = {
        (layer, head): (value, (layer, kv))
        for layer, groups in enumerate(values)
        for kv, group in enumerate(groups)
        for head, value in group.items()
    }
    names = list(worth)
    chosen_XH = np.array(list(itertools.product([False, True], repeat=len(names))))
    value_X = chosen_XH @ np.array([worth[name][0] for name in names])
    kv_of = [worth[name][1] for name in names]
    reads = [chosen_XH[:, [k == kv for k in kv_of]].any(axis=1) for kv in set(kv_of)]
    layers_XL = np.stack(
        [chosen_XH[:, [l == layer for l, _ in names]].sum(axis=1) for layer in range(len(values))],
        axis=1,
    )
    return value_X, np.sum(reads, axis=0), layers_XL


@pytest.mark.parametrize("kind", ["apart", "tied", "zero"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_budget_equals_brute_force(shape, kind, monkeypatch):
    monkeypatch.setattr(plan_search, "_ROWS", 2)
    layers, heads, kv_heads = shape
    values = _values(shape, kind, np.random.default_rng(layers * heads))
    value_X, kv_X, layers_XL = _all_sets(values)
    total = layers * kv_heads
    steps = [step for step in range(1, heads + 1) if heads % step == 0]
    for step, least, goal in itertools.product(steps, (0, 1), [None, *range(0, layers * heads, 2)]):
        counts = range(least * step, heads + 1, step)
        search = PlanSearch(values, counts, goal, total)
        allowed_X = np.isin(layers_XL, counts).all(axis=1)
        if goal is not None:
            allowed_X &= layers_XL.sum(axis=1) == goal
        for kv in range(total + 1):
            among = value_X[allowed_X & (kv_X <= kv)]
            best = among.max() if len(among) else -1
            assert max(search.best_X[kv], -1) == best
        feasible = np.flatnonzero(search.best_X >= 0).tolist()
        for kv in feasible[:: max(1, len(feasible) - 1)]:
            chosen = search.heads(kv, np.random.default_rng(0))
            _check_set(chosen, values, search, kv, counts, goal)


def _check_set(chosen, values, search, kv, counts, goal) -> None:
    kv_of = {
        (layer, head): k
        for layer, groups in enumerate(values)
        for k, group in enumerate(groups)
        for head in group
    }
    assert len(set(chosen)) == len(chosen) and set(chosen) <= kv_of.keys()
    assert len({(layer, kv_of[layer, head]) for layer, head in chosen}) <= kv
    assert sum(values[l][kv_of[l, n]][n] for l, n in chosen) == search.best_X[kv]
    assert goal is None or len(chosen) == goal
    assert all(sum(l == layer for l, _ in chosen) in counts for layer in range(len(values)))


def test_fewer_kv_heads_are_paid_for_than_the_model_has():
    values = _values((3, 4, 2), "apart", np.random.default_rng(0))
    found = lambda most: np.maximum(PlanSearch(values, range(5), 5, most).best_X, -1)
    for most in range(6):
        np.testing.assert_array_equal(found(most), found(6)[: most + 1])


def test_ties_are_drawn_by_the_seed_and_not_by_the_index():
    values = _values((4, 4, 2), "zero", np.random.default_rng(0))
    search = PlanSearch(values, range(5), 4, 8)
    draws = [tuple(search.heads(2, np.random.default_rng(seed))) for seed in range(12)]
    assert len(set(draws)) > 4
    assert draws[0] == tuple(search.heads(2, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="at most 1 KV heads"):
        search.heads(1, np.random.default_rng(0))


def test_large_values_do_not_overflow():
    values = [[{0: 2**58, 1: 2**58}, {2: 2**58, 3: 1}]] * 2
    search = PlanSearch(values, range(5), 4, 4)
    np.testing.assert_array_equal(
        np.maximum(search.best_X, -1), [-1, -1, 4 * 2**58, 4 * 2**58, 4 * 2**58]
    )
