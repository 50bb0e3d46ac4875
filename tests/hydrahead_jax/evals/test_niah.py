"""Needle documents are what they say they are."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import needle_document, needle_symbols
from tests.hydrahead_jax.evals.toy import HAYSTACK, tokenizer

SYMBOLS = needle_symbols(tokenizer())


def make(seed=0, **settings):
    settings = dict(length=96, needles=8) | settings
    return needle_document(SYMBOLS, HAYSTACK, np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("needles", [1, 8])
@pytest.mark.parametrize("asked", [None, np.array([0]), np.array([0, 0])])
def test_a_document_is_text_with_needles_and_queries_that_repeat_them(needles, asked):
    document = make(needles=needles, asked=asked)
    tokens_T, starts = document.tokens_T, document.needle_starts
    assert len(tokens_T) == 96 and len(starts) == needles
    facts = np.stack([tokens_T[s : s + 3] for s in starts])
    assert np.isin(facts[:, 0], SYMBOLS.keys).all() and np.isin(facts[:, 1:], SYMBOLS.values).all()
    assert len(set(facts[:, 0])) == needles == len({tuple(fact) for fact in facts[:, 1:]})
    queries = tokens_T[96 - 3 * len(document.asked) :].reshape(-1, 3)
    np.testing.assert_array_equal(queries, facts[document.asked])
    np.testing.assert_array_equal(tokens_T[document.answer_T], queries[:, 1:].ravel())
    text = np.delete(tokens_T[: -queries.size], (starts[:, None] + np.arange(3)).ravel())
    places = [i for i in range(len(HAYSTACK)) if np.array_equal(HAYSTACK[i : i + len(text)], text)]
    assert places


def test_a_seed_determines_a_document():
    np.testing.assert_array_equal(make(1).tokens_T, make(1).tokens_T)
    assert np.any(make(1).tokens_T != make(2).tokens_T)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(length=30), "8 needles and 1 queries do not fit into 30 tokens"),
        (dict(needles=17), "17 needles and 1 queries do not fit into 96 tokens with 16 keys"),
        (dict(length=5000), "the haystack has 2000 tokens, the document needs 4973"),
    ],
)
def test_impossible_documents_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make(**settings)


def test_a_tokenizer_without_symbols_is_refused():
    with pytest.raises(UserError, match="the tokenizer has no <key_00> and <val_00> symbols"):
        needle_symbols(Tokenizer(models.BPE()))
