import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import NEEDLE_LENGTH, NeedleSymbols, needle_symbols
from hydrahead_jax.selection.probes import SubProbe, probe_pairs, retrieval_probes

LENGTH = 64


@pytest.fixture
def symbols(planted_tokenizer):
    return needle_symbols(planted_tokenizer)


def _pairs(probe, symbols, words, **kwargs):
    return probe_pairs(probe, symbols, words, **{"length": LENGTH, "pairs": 8, "seed": 0} | kwargs)


@pytest.mark.parametrize("probe", retrieval_probes(6, 8), ids=lambda probe: probe.name)
def test_pair_differs_in_the_value_of_the_asked_needle_only(probe, symbols, words):
    pairs = _pairs(probe, symbols, words)
    assert pairs.tokens_BT.shape == pairs.corrupt_BT.shape == (8, LENGTH)
    for tokens, corrupt, answer, distractor in zip(*pairs, strict=True):
        changed = np.flatnonzero(tokens != corrupt)
        key_at = LENGTH - NEEDLE_LENGTH
        needle = changed[0] - 1
        np.testing.assert_array_equal(changed, [needle + 1, needle + 2])
        assert tokens[needle] == tokens[key_at] and needle < key_at
        np.testing.assert_array_equal(tokens[changed], answer)
        np.testing.assert_array_equal(corrupt[changed], distractor)
        np.testing.assert_array_equal(tokens[key_at + 1 :], answer)
        assert np.isin(distractor, symbols.values).all() and (answer != distractor).all()


def test_distractor_is_the_value_of_no_needle(symbols, words):
    few = NeedleSymbols(symbols.keys, symbols.values[:4])
    pairs = _pairs(SubProbe(name="many", needles=8), few, words, pairs=30)
    for tokens, distractor in zip(pairs.tokens_BT, pairs.distractor_BJ, strict=True):
        starts = np.flatnonzero(np.isin(tokens, few.keys))
        assert len(starts) == 9
        values = tokens[starts[:, None] + [1, 2]]
        assert not (values == distractor).all(axis=1).any()


def test_depth_of_the_asked_needle(symbols, words):
    for probe, (low, high) in zip(
        retrieval_probes(6, 8)[:3], ((0, 20), (19, 39), (38, 58)), strict=True
    ):
        pairs = _pairs(probe, symbols, words)
        first_change = (pairs.tokens_BT != pairs.corrupt_BT).argmax(axis=1) - 1
        assert ((low <= first_change) & (first_change <= high)).all()


def test_seed_and_name_determine_the_pairs(symbols, words):
    probe = SubProbe(name="a", needles=2)
    first = _pairs(probe, symbols, words)
    np.testing.assert_array_equal(first.tokens_BT, _pairs(probe, symbols, words).tokens_BT)
    others = (
        _pairs(probe, symbols, words, seed=1),
        _pairs(SubProbe(name="b", needles=2), symbols, words),
    )
    for other in others:
        assert (first.tokens_BT != other.tokens_BT).any()


def test_needles_are_capped_by_the_keys():
    assert [probe.needles for probe in retrieval_probes(8, 5)] == [1, 1, 1, 2, 5]
    assert [probe.needles for probe in retrieval_probes(8, 32)] == [1, 1, 1, 4, 8]


@pytest.mark.parametrize(
    ("needles", "length", "haystack", "message"),
    [
        (8, 20, 4000, "8 needles and 1 queries do not fit into 20 tokens"),
        (1, 64, 30, "haystack has 30 tokens"),
    ],
)
def test_what_does_not_fit_is_a_user_error(symbols, words, needles, length, haystack, message):
    with pytest.raises(UserError, match=message):
        _pairs(SubProbe(name="p", needles=needles), symbols, words[:haystack], length=length)


def test_no_room_at_a_depth_and_no_distractor_are_user_errors(symbols, words):
    with pytest.raises(UserError, match="no room for a needle at depth"):
        _pairs(SubProbe(name="p", needles=1, depth=(0.6, 0.9)), symbols, words, length=8)
    one_value = NeedleSymbols(symbols.keys, symbols.values[:1])
    with pytest.raises(UserError, match="1 value symbols leave no distractor"):
        _pairs(SubProbe(name="p", needles=1), one_value, words)
    two_values = NeedleSymbols(symbols.keys, symbols.values[:2])
    with pytest.raises(UserError, match="2 value symbols leave no distractor beside 4 needles"):
        _pairs(SubProbe(name="p", needles=4), two_values, words)
