"""Checks documents of associative recall and of needles, and how their answers are scored."""

import jax
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.answers import answer_scores
from hydrahead_jax.evals.mqar import (
    MqarSymbols,
    check_mqar,
    mqar_document,
    mqar_documents,
)
from hydrahead_jax.models import init_params
from tests.toy_config import toy_config

SYMBOLS = MqarSymbols(keys=20, values=12)
NEEDLES = MqarSymbols(keys=20, values=12, fillers=5, needles=True)


@pytest.mark.parametrize(("pairs", "length"), [(1, 4), (3, 31), (12, 48), (5, 128)])
def test_every_key_has_one_value_and_answers_are_right(pairs, length):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tokens_T, answer_T = mqar_document(SYMBOLS, rng, pairs=pairs, length=length)
        assert tokens_T.shape == answer_T.shape == (length,) and tokens_T.dtype == np.int32
        keys, values = tokens_T[0 : 2 * pairs : 2], tokens_T[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert keys.min() >= 1 and keys.max() <= 20 < values.min() and values.max() <= 32
        answers = np.flatnonzero(answer_T)
        assert answers.min() > 2 * pairs and len(answers) == pairs
        value_of = dict(zip(keys, values, strict=True))
        assert [value_of[key] for key in tokens_T[answers - 1]] == tokens_T[answers].tolist()
        assert np.count_nonzero(tokens_T > 0) == 4 * pairs


@pytest.mark.parametrize(("pairs", "length"), [(1, 4), (3, 13), (12, 49), (8, 64)])
def test_every_needle_stands_once_and_the_query_is_last(pairs, length):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tokens_T, answer_T = mqar_document(NEEDLES, rng, pairs=pairs, length=length)
        assert tokens_T.shape == answer_T.shape == (length,) and tokens_T.dtype == np.int32
        assert np.flatnonzero(answer_T).tolist() == [length - 1]
        *places, asked = np.flatnonzero((tokens_T >= 5) & (tokens_T < 25))
        assert asked == length - 2 and len(places) == pairs and places[-1] + 2 <= length // 2
        value_of = {tokens_T[place]: tokens_T[place + 1] for place in places}
        assert len(value_of) == len(set(value_of.values())) == pairs
        assert 25 <= min(value_of.values()) and max(value_of.values()) < NEEDLES.vocab == 37
        assert value_of[tokens_T[-2]] == tokens_T[-1]
        assert np.count_nonzero(tokens_T >= 5) == 2 * pairs + 2


def test_needles_stand_at_every_depth_among_every_filler():
    tokens_XT, _ = mqar_documents(NEEDLES, 0, documents=200, pairs=1, length=24)
    is_key_XT = (tokens_XT >= 5) & (tokens_XT < 25)
    assert set(np.argmax(is_key_XT, axis=1)) == set(range(11))
    assert set(tokens_XT[tokens_XT < 5]) == set(range(5))


def test_documents_stay_as_they_are_so_that_runs_continue():
    rng = np.random.default_rng(7)
    tokens_T, _ = mqar_document(SYMBOLS, rng, pairs=3, length=16)
    assert tokens_T.tolist() == [18, 30, 12, 23, 14, 28, 12, 23, 0, 0, 14, 28, 18, 30, 0, 0]


def test_queries_come_early_where_the_power_is_small():
    def mean_place(power: float) -> float:
        symbols = MqarSymbols(keys=4, values=4, power=power)
        _, answer_XT = mqar_documents(symbols, 0, documents=200, pairs=2, length=64)
        return float(np.nonzero(answer_XT)[1].mean())

    assert mean_place(0.01) < 24 < 30 < mean_place(1.0)


@pytest.mark.parametrize("symbols", [SYMBOLS, NEEDLES])
def test_the_seed_determines_documents(symbols):
    size = {"documents": 4, "pairs": 3, "length": 24}
    (first, _), (again, _) = (mqar_documents(symbols, 7, **size) for _ in range(2))
    other, _ = mqar_documents(symbols, 8, **size)
    assert (first == again).all() and (first != other).any(axis=1).all()


def test_an_impossible_document_is_refused():
    for pairs, length, words in [
        (3, 11, "at most a quarter"),
        (0, 8, "at least 1"),
        (13, 99, "12"),
    ]:
        with pytest.raises(UserError, match=words):
            check_mqar(SYMBOLS, pairs, length, "stage 'x'")
    with pytest.raises(ValueError, match="power=0"):
        MqarSymbols(keys=1, values=1, power=0.0)
    with pytest.raises(ValueError, match="fillers=0"):
        MqarSymbols(fillers=0)


def test_answers_are_scored_where_they_stand():
    """A model whose final norm is 0 gives all tokens the same logit, and argmax takes token 0."""
    config = toy_config(vocab=8, embed=8, mlp=8, head_dim=4, max_length=8)
    params = init_params(config, jax.random.key(0))
    params["final_norm_D"] *= 0
    tokens_XT = np.array([[1, 0, 2, 0, 3], [1, 0, 2, 5, 0], [4, 5, 6, 7, 0]], np.int32)
    answer_XT = np.array([[0, 1, 0, 1, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 0]], bool)
    scores = answer_scores(config, params, tokens_XT, answer_XT, batch=2)
    assert scores.tokens == 3 / 5 and scores.documents == 1 / 3
    assert scores.loss == pytest.approx(np.log(8), rel=1e-6)
