"""Checks counterfactual pairs of documents made of symbols, and pairs as arrays."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.niah import NEEDLE_LENGTH
from hydrahead_jax.selection.probes.pairs import PairRow, pair_rows, stack_pairs
from hydrahead_jax.selection.probes.retrieval import SubProbe, probe_pairs, retrieval_probes
from hydrahead_jax.selection.probes.symbols import SymbolNeedles
from tests.hydrahead_jax.evals.tokenizers import digit_splitting

LENGTH = 64
PROBES = retrieval_probes("symbols", needles=6)


def _tokenizer(keys: int = 8, values: int = 32) -> Tokenizer:
    names = [f"word{i}" for i in range(16)]
    names += [f"<key_{i:02d}>" for i in range(keys)] + [f"<val_{i:02d}>" for i in range(values)]
    return Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "word0"))


def _pairs(probe, words, tokenizer=None, **kwargs):
    how = {"length": LENGTH, "pairs": 8, "seed": 0} | kwargs
    return probe_pairs(probe, tokenizer or _tokenizer(), words, **how)


def _made_of(**needles) -> SubProbe:
    counterfactual = needles.pop("counterfactual", "value")
    documents = SymbolNeedles(**needles)
    return SubProbe(name="p", counterfactual=counterfactual, documents=documents)


def test_sub_probes_of_a_selection():
    names = ["niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1"]
    names += ["niah_multikey_2", "niah_multikey_1_keys", "niah_multikey_2_keys"]
    for template in ("symbols", "ruler"):
        probes = retrieval_probes(template)
        assert [probe.name for probe in probes] == names
        assert [probe.counterfactual for probe in probes] == ["value"] * 5 + ["keys"] * 2
        assert {probe.capability for probe in probes} == {"retrieval"}
    assert [probe.documents.needles for probe in PROBES] == [1, 1, 1, 3, 6, 3, 6]


@pytest.mark.parametrize("probe", PROBES[:5], ids=lambda probe: probe.name)
def test_pair_differs_in_the_value_of_the_asked_needle_only(probe, words):
    pairs = _pairs(probe, words)
    assert pairs.tokens_BT.shape == (8, LENGTH) and (pairs.segment_ids_BT == 1).all()
    values = np.arange(24, 56)
    for tokens, corrupt, _, answer, distractor in zip(*pairs, strict=True):
        changed = np.flatnonzero(tokens != corrupt)
        key_at = LENGTH - NEEDLE_LENGTH
        needle = changed[0] - 1
        np.testing.assert_array_equal(changed, [needle + 1, needle + 2])
        assert tokens[needle] == tokens[key_at] and needle < key_at
        np.testing.assert_array_equal(tokens[changed], answer)
        np.testing.assert_array_equal(corrupt[changed], distractor)
        np.testing.assert_array_equal(tokens[key_at + 1 :], answer)
        assert np.isin(distractor, values).all() and (answer != distractor).all()


@pytest.mark.parametrize("probe", PROBES[5:], ids=lambda probe: probe.name)
def test_pair_differs_in_two_keys_that_change_places(probe, words):
    for tokens, corrupt, _, answer, distractor in zip(*_pairs(probe, words), strict=True):
        changed = np.flatnonzero(tokens != corrupt)
        assert len(changed) == 2
        np.testing.assert_array_equal(corrupt[changed], tokens[changed[::-1]])
        asked = tokens[LENGTH - NEEDLE_LENGTH]
        values = {tokens[at]: tokens[at + 1 : at + NEEDLE_LENGTH].tolist() for at in changed}
        (other,) = set(values) - {asked}
        assert values[asked] == answer.tolist() == tokens[LENGTH - 2 :].tolist()
        assert values[other] == distractor.tolist() and (answer != distractor).all()


def test_distractor_is_the_value_of_no_needle(words):
    tokenizer = _tokenizer(values=4)
    pairs = _pairs(_made_of(needles=8), words, tokenizer, pairs=30)
    for tokens, distractor in zip(pairs.tokens_BT, pairs.distractor_BJ, strict=True):
        starts = np.flatnonzero((tokens >= 16) & (tokens < 24))
        assert len(starts) == 9
        values = tokens[starts[:, None] + [1, 2]]
        assert not (values == distractor).all(axis=1).any()


def test_depth_of_the_asked_needle(words):
    for probe, (low, high) in zip(PROBES[:3], ((0, 20), (19, 39), (38, 58)), strict=True):
        pairs = _pairs(probe, words)
        first_change = (pairs.tokens_BT != pairs.corrupt_BT).argmax(axis=1) - 1
        assert ((low <= first_change) & (first_change <= high)).all()


@pytest.mark.parametrize("template", ["symbols", "ruler"])
def test_seed_and_name_determine_the_pairs(template, words):
    documents = retrieval_probes(template)[3].documents
    tokenizer, haystack = {
        "symbols": (_tokenizer(), words),
        "ruler": (digit_splitting(), Haystack(("A b. " * 99,))),
    }[template]

    def make(name: str, seed: int):
        probe = SubProbe(name=name, documents=documents)
        return probe_pairs(probe, tokenizer, haystack, length=300, pairs=3, seed=seed)

    first = make("a", 0)
    np.testing.assert_array_equal(first.tokens_BT, make("a", 0).tokens_BT)
    for other in (make("a", 1), make("b", 0)):
        assert (first.tokens_BT != other.tokens_BT).any()


def test_needles_are_capped_by_the_keys(words):
    pairs = _pairs(_made_of(needles=8), words, _tokenizer(keys=5))
    keys = (pairs.tokens_BT >= 16) & (pairs.tokens_BT < 21)
    assert (keys.sum(axis=1) == 5 + 1).all()


@pytest.mark.parametrize(
    ("needles", "length", "haystack", "message"),
    [
        (8, 20, 4000, "probe p: 8 needles and 1 queries do not fit into 20 tokens"),
        (1, 64, 30, "haystack has 30 tokens"),
    ],
)
def test_what_does_not_fit_is_a_user_error(words, needles, length, haystack, message):
    with pytest.raises(UserError, match=message):
        _pairs(_made_of(needles=needles), words[:haystack], length=length)


@pytest.mark.parametrize(
    ("made_of", "values", "message"),
    [
        ({"needles": 1}, 1, "1 value symbols leave no distractor beside 1 needles"),
        ({"needles": 4}, 2, "2 value symbols leave no distractor beside 4 needles"),
        ({"needles": 1, "counterfactual": "keys"}, 9, "for swapped keys at least 2 needles"),
    ],
)
def test_no_distractor_is_a_user_error(words, made_of, values, message):
    with pytest.raises(UserError, match=message):
        _pairs(_made_of(**made_of), words, _tokenizer(values=values))


def test_no_room_at_a_depth_is_a_user_error(words):
    with pytest.raises(UserError, match="no room for a needle at depth"):
        _pairs(_made_of(needles=1, depth=(0.6, 0.9)), words, length=8)


def test_rows_become_arrays_and_rows_again():
    rows = [
        PairRow([1, 2, 3], [1, 9, 3], [4, 5], [6, 5]),
        PairRow([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [7], [8]),
    ]
    pairs = stack_pairs(rows)
    np.testing.assert_array_equal(pairs.tokens_BT, [[0, 0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 7, 0]])
    np.testing.assert_array_equal(pairs.corrupt_BT, [[0, 0, 1, 9, 3, 4, 5], [1, 2, 3, 4, 6, 7, 0]])
    np.testing.assert_array_equal(
        pairs.segment_ids_BT, [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]]
    )
    np.testing.assert_array_equal(pairs.answer_BJ, [[4, 5], [7, -1]])
    np.testing.assert_array_equal(pairs.distractor_BJ, [[6, 5], [8, -1]])
    assert {x.dtype for x in pairs} == {np.dtype(np.int32)}
    assert pair_rows(pairs) == rows == pair_rows(stack_pairs(rows, 12))
    assert stack_pairs(rows, 12).tokens_BT.shape == (2, 12)


def test_a_sub_probe_from_a_file_makes_no_pairs(words):
    with pytest.raises(ValueError, match="does not say what its pairs are made of"):
        _pairs(SubProbe(name="p"), words)
