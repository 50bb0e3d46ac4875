"""Checks what packed batches hold, and that a position brings them back."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import needle_symbols
from tests.train import small
from train.data.batches import DataConfig, NeedleData, check_data, make_batches
from train.data.text import Corpus, end_of_text

NEEDLES = NeedleData(share=1.0, lengths=(40, 48), needles=(1, 3), queries_per_needle=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small.write_texts(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def corpus():
    return Corpus(small.tokenizer())


def take(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


def assert_equal(batches, others) -> None:
    for batch, other in zip(batches, others, strict=True):
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def segments(batch):
    """Yields each packed piece's tokens and weights."""
    for tokens, ids, weights in zip(
        batch.tokens_BT, batch.segment_ids_BT, batch.loss_weight_BT, strict=True
    ):
        for number in range(1, ids.max() + 1):
            yield tokens[ids == number], weights[ids == number]


@pytest.mark.parametrize("needles", [None, NEEDLES, dataclasses.replace(NEEDLES, share=0.3)])
def test_seed_determines_the_batches(needles, text, corpus):
    data = DataConfig(length=48, batch=3, text=text, needles=needles)
    batches = take(make_batches(data, corpus, 5), 6)
    assert_equal(batches, take(make_batches(data, Corpus(small.tokenizer()), 5), 6))
    other = take(make_batches(data, corpus, 6), 6)
    assert any((a.tokens_BT != b.tokens_BT).any() for a, b in zip(batches, other, strict=True))


@pytest.mark.parametrize("needles", [None, dataclasses.replace(NEEDLES, share=0.3)])
@pytest.mark.parametrize("done", [1, 4, 30])
def test_position_brings_back_the_batches(done, needles, text, corpus):
    """The position goes through JSON into a new iterator, in the first epoch and later ones."""
    data = DataConfig(length=48, batch=3, text=text, needles=needles)
    iterator = make_batches(data, corpus, 5)
    take(iterator, done)
    state = json.dumps(iterator.get_state())
    restored = make_batches(data, Corpus(small.tokenizer()), 5)
    restored.set_state(json.loads(state))
    assert_equal(take(restored, 5), take(iterator, 5))


def test_every_epoch_holds_every_piece_once(text, corpus):
    length = 48
    documents = corpus.documents(text)
    pieces = [tuple(d[i : i + length]) for d in documents for i in range(0, len(d), length)]
    pieces = sorted(piece for piece in pieces if len(piece) > 1)
    data = DataConfig(length=length, batch=1, text=text)
    batches = make_batches(data, corpus, 0)
    found = []
    while len(found) < 4 * len(pieces):
        found += [tuple(tokens) for tokens, _ in segments(next(batches))]
    counts = {piece: found.count(piece) / pieces.count(piece) for piece in set(pieces)}
    assert set(found) == set(pieces)
    assert min(counts.values()) >= 3 and max(counts.values()) <= 6


def test_rows_are_packed_and_padded(text, corpus):
    data = DataConfig(length=48, batch=16, text=text)
    batch = next(make_batches(data, corpus, 0))
    assert batch.tokens_BT.shape == (16, 48)
    assert batch.tokens_BT.dtype == batch.segment_ids_BT.dtype == np.int32
    padding = batch.segment_ids_BT == 0
    assert (batch.loss_weight_BT[padding] == 0).all() and (
        batch.loss_weight_BT[~padding] == 1
    ).all()
    assert batch.segment_ids_BT.max() > 1 and padding.mean() < 0.5
    end = end_of_text(corpus.tokenizer)
    assert all((tokens[:-1] != end).all() for tokens, _ in segments(batch))


def test_needle_documents(text, corpus):
    data = DataConfig(
        length=96, batch=8, text=text, needles=NEEDLES, text_weight=0.1, answer_weight=1.0
    )
    symbols, end = needle_symbols(corpus.tokenizer), end_of_text(corpus.tokenizer)
    found = [piece for batch in take(make_batches(data, corpus, 0), 3) for piece in segments(batch)]
    assert len(found) > 24, "two documents fit into a row"
    counts = set()
    for tokens, weights in found:
        keys, times = np.unique(tokens[np.isin(tokens, symbols.keys)], return_counts=True)
        counts.add(len(keys))
        assert 40 <= len(tokens) <= 48 and tokens[-1] == end
        assert (times == 3).all(), "told once, asked for twice"
        answer = weights > 0.5
        assert answer.sum() == 4 * len(keys)
        assert np.isin(tokens[answer], symbols.values).all()
        np.testing.assert_allclose(weights[answer], 1.1, rtol=1e-6)
        np.testing.assert_allclose(weights[~answer], 0.1, rtol=1e-6)
    assert counts == {1, 2, 3}


def test_share_of_needle_documents(text, corpus):
    needles = dataclasses.replace(NEEDLES, share=0.25)
    data = DataConfig(length=48, batch=8, text=text, needles=needles)
    symbols = needle_symbols(corpus.tokenizer)
    batches = take(make_batches(data, corpus, 0), 20)
    found = [np.isin(tokens, symbols.keys).any() for b in batches for tokens, _ in segments(b)]
    assert abs(np.mean(found) - 0.25) < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": (10, 48)}, "lengths=.* must be ascending and between 31, which 3 needles"),
        ({"lengths": (40, 49)}, "and the row length 48"),
        ({"share": 0.0}, r"share=0\.0 must be above 0"),
    ],
)
def test_impossible_needle_documents(change, message):
    data = DataConfig(length=48, batch=1, needles=dataclasses.replace(NEEDLES, **change))
    with pytest.raises(UserError, match=message):
        check_data(data, "stage 'x'")


def test_smallest_needle_document_can_be_made(text, corpus):
    """The bound that `check_data` names is enough."""
    needles = dataclasses.replace(NEEDLES, lengths=(31, 31))
    data = DataConfig(length=31, batch=16, text=text, needles=needles)
    check_data(data, "stage 'x'")
    take(make_batches(data, corpus, 0), 4)


def test_more_needles_than_keys(text, corpus):
    needles = dataclasses.replace(NEEDLES, lengths=(300, 300), needles=(9, 9))
    data = DataConfig(length=300, batch=1, text=text, needles=needles)
    with pytest.raises(UserError, match="8 key symbols, fewer than the 9 needles"):
        make_batches(data, corpus, 0)
