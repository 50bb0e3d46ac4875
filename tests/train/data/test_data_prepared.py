"""Checks rows of prepared text: the same for any processes, and brought back by a position."""

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from tests.train.data import prepared_text
from tests.train.data.prepared_text import BATCH, LENGTH, config
from train.data.batches import DataConfig, NeedleData, make_batches
from train.data.prepared.plans import plan_for
from train.data.text import TextSource

ARRAYS = ("tokens_BT", "segment_ids_BT", "loss_weight_BT")
PROCESSES = {1: [range(6)], 2: [(0, 1, 4), (2, 3, 5)], 3: [(0, 1), (2, 3), (4, 5)]}


def joined(parts: list, rows: list) -> dict[str, np.ndarray]:
    """Joins the global batch from the rows of each process."""
    order = np.argsort(np.concatenate([list(r) for r in rows]))
    return {n: np.concatenate([getattr(part, n) for part in parts])[order] for n in ARRAYS}


def assert_same(batches: list[dict], others: list[dict]) -> None:
    for batch, other in zip(batches, others, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], name)


def global_batches(data, corpus, processes: int, state: dict | None, count: int):
    """Returns `count` batches made by that many processes, and each process's state after them."""
    rows = PROCESSES[processes]
    iterators = [make_batches(data, corpus, 7, tuple(r)) for r in rows]
    for iterator in iterators:
        if state is not None:
            iterator.set_state(json.loads(json.dumps(state)))
    batches = [joined([next(i) for i in iterators], rows) for _ in range(count)]
    return batches, [iterator.get_state() for iterator in iterators]


def pieces(batch: dict):
    """Yields the tokens of each document in each row."""
    for tokens, ids in zip(batch["tokens_BT"], batch["segment_ids_BT"], strict=True):
        for number in range(1, ids.max() + 1):
            yield tuple(tokens[ids == number].tolist())


@pytest.mark.parametrize("packing", ["best_fit", "split"])
def test_processes_share_the_same_rows(packing, folders, corpus):
    data = config(*folders, weights=(1.0, 2.5), packing=packing)
    wanted, _ = global_batches(data, corpus, 1, None, 12)
    for processes in (2, 3):
        found, states = global_batches(data, corpus, processes, None, 12)
        assert_same(found, wanted)
        assert all(state == states[0] for state in states)


@pytest.mark.parametrize("done", [1, 7, 40])
@pytest.mark.parametrize("processes", [(1, 1), (1, 3), (3, 2)])
def test_resumes_with_any_number_of_processes(processes, done, folders, corpus):
    """The runs stop in the middle of an epoch, the first one and later ones."""
    before, after = processes
    data = config(*folders)
    wanted, _ = global_batches(data, corpus, 1, None, done + 3)
    _, states = global_batches(data, corpus, before, None, done)
    found, _ = global_batches(data, corpus, after, states[-1], 3)
    assert_same(found, wanted[done:])


@pytest.mark.parametrize("processes", [(1, 3), (2, 1)])
def test_text_in_memory_is_shared_out_too(processes, corpus, tmp_path):
    (tmp_path / "a.txt").write_text("def f(x):\n" * 300)
    needles = NeedleData(share=0.3, lengths=(40, 48), needles=(1, 2))
    source = TextSource(folder=str(tmp_path))
    data = DataConfig(length=LENGTH, batch=BATCH, text=source, needles=needles)
    wanted, _ = global_batches(data, corpus, 1, None, 9)
    before, states = global_batches(data, corpus, processes[0], None, 5)
    after, _ = global_batches(data, corpus, processes[1], states[-1], 4)
    assert_same(before + after, wanted)
    assert all(state == states[0] for state in states)


@pytest.mark.parametrize("packing", ["best_fit", "split"])
def test_every_epoch_holds_every_token_once(packing, folders, corpus):
    """Each epoch has the rows in another order."""
    data = dataclasses.replace(config(folders[0], packing=packing), batch=1)
    rows = plan_for(folders[0], LENGTH, packing).rows
    batches = make_batches(data, corpus, 3)
    documents = prepared_text.documents_of(folders[0])
    orders = []
    for _ in range(3):
        epoch = [vars(batch) for batch in itertools.islice(batches, rows)]
        orders.append([batch["tokens_BT"].tobytes() for batch in epoch])
        assert sorted(orders[0]) == sorted(orders[-1])
    assert orders[0] != orders[1] != orders[2]
    found = Counter(piece for batch in epoch for piece in pieces(batch))
    if packing == "best_fit":
        cuts = [d[i : i + LENGTH] for d in documents for i in range(0, len(d), LENGTH)]
        assert found == Counter(cuts), "only documents longer than a row are cut"
    else:
        assert_tokens_of(found, documents)


def assert_tokens_of(found: Counter, documents: list[tuple]) -> None:
    """Checks that the pieces, joined wherever they fit, are the documents."""
    tokens = Counter(token for piece, times in found.items() for token in piece * times)
    assert tokens == Counter(token for document in documents for token in document)
    whole = [d for d in documents if len(d) <= LENGTH]
    assert sum(min(found[d], n) for d, n in Counter(whole).items()) > len(whole) / 2
    ends = [d for d in documents if any(d[-len(p) :] == p for p in found)]
    starts = [d for d in documents if any(d[: len(p)] == p for p in found)]
    assert len(ends) == len(starts) == len(documents)


def test_seed_determines_the_order(folders, corpus):
    data = config(folders[0])
    first, again, other = (next(make_batches(data, corpus, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.tokens_BT, again.tokens_BT)
    assert (first.tokens_BT != other.tokens_BT).any()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.02, 0.18)])
def test_weights_are_shares_of_rows(weights, folders, corpus):
    data = config(*folders, weights=weights)
    plans = [plan_for(folder, LENGTH, "best_fit") for folder in folders]
    mine, others = (set(row_set(*pair)) for pair in zip(folders, plans, strict=True))
    batches = list(itertools.islice(make_batches(data, corpus, 0), 50))
    rows = [tuple(row) for batch in batches for row in batch.tokens_BT.tolist()]
    assert all((row in mine) != (row in others) for row in rows)
    assert abs(np.mean([row in mine for row in rows]) - weights[0] / sum(weights)) < 0.01


def row_set(folder, plan):
    """Yields the padded rows of a plan."""
    for first, last in zip(plan.first[:-1], plan.first[1:], strict=True):
        tokens = np.concatenate(folder.read(np.array(plan.pieces[first:last])))
        yield tuple(np.pad(tokens, (0, LENGTH - len(tokens))).tolist())


@pytest.mark.parametrize("packing", ["best_fit", "split"])
def test_segments_and_weights(packing, folders, corpus):
    data = config(folders[0], packing=packing, text_weight=0.5)
    for batch in itertools.islice(make_batches(data, corpus, 0), 10):
        ids, tokens, weight = batch.segment_ids_BT, batch.tokens_BT, batch.loss_weight_BT
        assert ids.shape == tokens.shape == weight.shape == (BATCH, LENGTH)
        assert tokens.dtype == ids.dtype == np.int32 and weight.dtype == np.float32
        np.testing.assert_array_equal(weight, np.where(ids > 0, 0.5, 0))
        assert (tokens[ids == 0] == 0).all() and ids[:, 0].min() == 1
        steps = np.diff(ids)
        assert np.isin(steps[ids[:, 1:] > 0], (0, 1)).all() and (ids[:, 1:][steps < 0] == 0).all()
        end = folders[0].manifest["end_of_text"]
        assert (tokens[:, :-1][steps == 1] == end).mean() > 0.8, "a document's end is in its own"
