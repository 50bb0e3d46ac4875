"""Checks counterfactual pairs in RULER's words with tokenizers of several kinds."""

import functools
import re

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.selection.probes.retrieval import probe_pairs, retrieval_probes
from tests.hydrahead_jax.evals.tokenizers import characters, digit_splitting, merging, words

PROBES = {probe.name: probe for probe in retrieval_probes("ruler")}
PROSE = Haystack(("Time went by. Was it late? No! They said: go on. " * 20,))
FOREIGN = Haystack(
    ("Смех 😀🏽‍🚀 и e\u0301le\u0300ve. 雪が降る。 İstanbul ﷽! \u2028 x\u00a0y " * 20,), None
)
LENGTH, LONGEST_UNIT = 1500, 120
FACT = re.compile(r"One of the special magic \w+ for (.+?) is: (\S+)\.(?=\s)")
ASKED = re.compile(r" for (\S+) mentioned in the provided text is (\S+)$")


@functools.cache
def _make(name, tokenizer, haystack=PROSE, **kwargs):
    how = {"length": LENGTH, "pairs": 4, "seed": 0} | kwargs
    return probe_pairs(PROBES[name], tokenizer, haystack, **how)


def _texts(pairs, row, tokenizer):
    """Returns the texts of x, of x', and of x with the distractor at its end."""
    real = pairs.segment_ids_BT[row] == 1
    tokens, corrupt = pairs.tokens_BT[row][real], pairs.corrupt_BT[row][real]
    distractor = pairs.distractor_BJ[row][pairs.distractor_BJ[row] >= 0]
    other = [*tokens[: -len(distractor)], *distractor]
    return [tokenizer.decode([int(i) for i in ids]) for ids in (tokens, corrupt, other)]


@pytest.mark.parametrize("tokenizer", [merging, digit_splitting, characters])
@pytest.mark.parametrize("name", PROBES)
def test_texts_differ_in_what_is_swapped_only(name, tokenizer):
    pairs = _make(name, tokenizer())
    needles = {"niah_multikey_1": 4, "niah_multikey_1_keys": 4}.get(name, 1)
    for row in range(4):
        x, corrupt, other = _texts(pairs, row, tokenizer())
        facts, corrupt_facts = (dict(FACT.findall(text)) for text in (x, corrupt))
        assert len(facts) >= 10 if "multikey_2" in name else len(facts) == needles
        (key, answer), (_, distractor) = (ASKED.search(text).groups() for text in (x, other))
        assert facts[key] == answer and corrupt_facts[key] == distractor
        assert x.count(answer) == 2 and corrupt.endswith(f"is {answer}")
        form = [place for place, character in enumerate(answer) if character == distractor[place]]
        assert form == ([8, 13, 14, 18, 23] if name == "niah_single_3" else [])
        if PROBES[name].counterfactual == "value":
            assert distractor not in x
            assert corrupt_facts == facts | {key: distractor}
        else:
            (partner,) = [k for k, value in facts.items() if value == distractor]
            assert corrupt_facts == facts | {key: distractor, partner: answer}
            assert (
                x.replace(key, "@")
                .replace(partner, key)
                .replace("@", partner)
                .startswith(corrupt[: corrupt.index("\nWhat is")])
            )


@pytest.mark.parametrize("tokenizer", [merging, digit_splitting, characters])
@pytest.mark.parametrize("name", PROBES)
def test_arrays_are_padded_and_answers_stand_at_the_end(name, tokenizer):
    pairs = _make(name, tokenizer())
    T, J = LENGTH, pairs.answer_BJ.shape[1]
    assert pairs.tokens_BT.shape == pairs.corrupt_BT.shape == (4, T)
    for tokens, corrupt, segment_ids, answer, distractor in zip(*pairs, strict=True):
        count = int((answer >= 0).sum())
        np.testing.assert_array_equal(answer >= 0, np.arange(J) < count)
        np.testing.assert_array_equal(distractor >= 0, answer >= 0)
        assert answer[0] != distractor[0]
        for text in (tokens, corrupt):
            np.testing.assert_array_equal(text[T - J :][:count], answer[:count])
        real = np.flatnonzero(segment_ids)
        np.testing.assert_array_equal(real, np.arange(real[0], T - J + count))
        assert (tokens[segment_ids == 0] == 0).all() and (corrupt[segment_ids == 0] == 0).all()
        assert (tokens != corrupt).any() and real[0] <= LONGEST_UNIT
    assert max((answer >= 0).sum() for answer in pairs.answer_BJ) == J


@pytest.mark.parametrize("tokenizer", [merging, digit_splitting, characters])
@pytest.mark.parametrize("name", PROBES)
def test_tokens_differ_inside_the_changed_keys_and_values_only(name, tokenizer):
    pairs = _make(name, tokenizer())
    for row in range(4):
        x, corrupt, _ = _texts(pairs, row, tokenizer())
        facts, corrupt_facts = (set(FACT.findall(text)) for text in (x, corrupt))
        part = 0 if PROBES[name].counterfactual == "keys" else 1
        changed = [fact[part] for fact in facts - corrupt_facts]
        assert len(changed) == (2 if part == 0 else 1)
        at = np.flatnonzero(pairs.tokens_BT[row] != pairs.corrupt_BT[row])
        for places in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
            stretch = tokenizer().decode(pairs.tokens_BT[row][places].tolist()).strip()
            assert any(stretch in text for text in changed)


def test_digits_are_the_answer_where_a_space_is_a_token_of_its_own():
    """The space that answer and distractor share stands in the prompt."""
    pairs = _make("niah_single_2", digit_splitting())
    assert pairs.answer_BJ.shape == (4, 7) and (pairs.answer_BJ != pairs.distractor_BJ).all()
    assert digit_splitting().decode(pairs.answer_BJ[0].tolist()).isdigit()


def test_answers_of_unequal_lengths_share_one_array():
    lengths = (_make("niah_single_1", merging(), pairs=30).answer_BJ >= 0).sum(axis=1)
    assert len(set(lengths.tolist())) > 1


@pytest.mark.parametrize("tokenizer", [merging, digit_splitting, characters])
def test_any_text_is_a_haystack(tokenizer):
    """The text has characters of several tokens, or none that the tokenizer knows."""
    for name in ("niah_single_3", "niah_multikey_1_keys"):
        pairs = _make(name, tokenizer(), FOREIGN)
        x, corrupt, _ = _texts(pairs, 0, tokenizer())
        key, answer = ASKED.search(x).groups()
        assert dict(FACT.findall(x))[key] == answer != dict(FACT.findall(corrupt))[key]


def test_the_smallest_length_that_works_works():
    for name in PROBES:
        make = lambda length, name=name: _make(name, merging(), length=length)
        with pytest.raises(UserError, match=f"probe {name}: 30 tokens are too few") as error:
            make(30)
        smallest = int(str(error.value).rsplit(" ", 1)[1])
        assert 60 < smallest < 600 and make(smallest).tokens_BT.shape[1] == smallest
        with pytest.raises(UserError, match=f"use at least {smallest}"):
            make(smallest - 1)


def test_a_tokenizer_without_numbers_is_a_user_error():
    with pytest.raises(UserError, match=r"300 draws .* have the same tokens"):
        _make("niah_single_1", words())


def test_tokens_alone_are_no_text():
    with pytest.raises(UserError, match="probe niah_single_2: the haystack holds no text"):
        _make("niah_single_2", merging(), Haystack.of(np.arange(5000)))
    _make("niah_single_1", merging(), Haystack.of(np.arange(5000)))
