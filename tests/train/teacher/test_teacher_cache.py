"""Checks the teacher cache: written, resumed, read by a stage, refused where it does not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from hydrahead_jax.errors import UserError
from hydrahead_jax.models import init_params, merge
from tests.train import small
from train.commands import cache_teacher
from train.commands.transfer import transfer
from train.data.batches import make_batches
from train.data.text import load_corpus
from train.losses.model_batch import make_model_batch
from train.losses.objectives import objective_of
from train.losses.shared import whole_counts
from train.stage.stage import stage_seed
from train.stage.teacher_cache import TeacherCache
from train.teacher.cache_folder import Block, CacheFolder, Part, part_name, write_block
from train.teacher.cache_record import RowFormat
from train.teacher.cache_writers import rows_of_writers
from train.teacher.cached_batches import CachedBatches, check_cache

TOKENS = 16


def with_cache(config, folder, tokens: int = TOKENS, **changes):
    """Returns the stage that distills alone, with a cache."""
    (stage,) = (stage for stage in config.stages if stage.loss == "distill")
    stage = dataclasses.replace(stage, **changes)
    cache = TeacherCache(folder=str(folder), tokens=tokens)
    return dataclasses.replace(config, stages=(dataclasses.replace(stage, teacher_cache=cache),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config(folder):
    """Returns a transfer whose cache is written."""
    made = with_cache(small.transfer_config(folder), folder / "cache")
    cache_teacher.cache_teacher(made, say=lambda sentence: None)
    return made


@pytest.fixture(scope="module")
def corpus(config):
    return load_corpus(small.Path(config.teacher) / "tokenizer.json", small.TEACHER)


def first_batch(config, corpus):
    stage = config.stages[0]
    seed = stage_seed(config.seed, stage.name)
    return next(CachedBatches(make_batches(stage.data, corpus, seed), stage, (0, 1)))


def log_probabilities(config, params, batch) -> np.ndarray:
    def run(params, tokens_BT, segment_ids_BT):
        model = merge(config, params)
        output = model(tokens_BT, segment_ids_BT=segment_ids_BT, training=True)
        return jax.nn.log_softmax(model.logits(output.hidden_BTD))

    return np.asarray(jax.jit(run)(params, batch.tokens_BT, batch.segment_ids_BT), np.float64)


def test_what_is_kept_and_its_loss(config, corpus):
    """The cache holds the most probable tokens at each position, to the rounding that is stated."""
    stage, batch = config.stages[0], first_batch(config, corpus)
    log_p = log_probabilities(small.TEACHER, init_params(small.TEACHER, jax.random.key(1)), batch)
    real, kept = batch.segment_ids_BT > 0, batch.teacher
    expected = -np.sort(-log_p)[..., :TOKENS]
    found = np.take_along_axis(log_p, kept.ids_XK, -1)
    assert np.all(np.abs(kept.log_p_XK - expected)[real] <= 2**-11 * np.abs(expected[real]) + 1e-4)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)
    np.testing.assert_allclose(kept.tail_X[real], 1 - np.exp(expected).sum(-1)[real], atol=1e-4)

    def loss(params, batch):
        made, objective = make_model_batch(batch, None), objective_of(stage)
        counts = whole_counts(made)
        return objective.loss(stage, small.STUDENT, params, made, None, counts, None)[0]

    student = init_params(small.STUDENT, jax.random.key(2))
    log_q = log_probabilities(small.STUDENT, student, batch)
    q = np.exp(np.take_along_axis(log_q, kept.ids_XK, -1))
    kl = (np.exp(expected) * (expected - np.log(q))).sum(-1)
    tail_p, tail_q = 1 - np.exp(expected).sum(-1), 1 - q.sum(-1)
    kl += tail_p * np.log(tail_p / tail_q)
    whole = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    actual = float(jax.jit(loss)(student, jax.tree.map(jnp.asarray, batch)))
    assert abs(actual - kl[real].mean()) < 1e-4
    assert 0 < actual < whole[real].mean()


def test_continues_after_a_kill(config, folder, monkeypatch):
    """A block that was begun is written again, and the records are the same."""
    again = with_cache(config, folder / "again")
    monkeypatch.setattr(cache_teacher, "_BLOCK_BYTES", 1)
    write, said = cache_teacher.write_block, []

    def dies(path, block):
        if block.first == 2:
            raise KeyboardInterrupt
        write(path, block)

    monkeypatch.setattr(cache_teacher, "write_block", dies)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher.cache_teacher(again, say=said.append)
    monkeypatch.setattr(cache_teacher, "write_block", write)
    cache_teacher.cache_teacher(again, say=said.append)
    assert any("continuing" in sentence and "step 2 of 4" in sentence for sentence in said)
    cache_teacher.cache_teacher(again, say=said.append)
    assert "nothing to do" in said[-1]
    found = json.loads((folder / "again" / "manifest.json").read_text())
    caches = [CacheFolder(folder / name, found) for name in ("cache", "again")]
    assert [len(cache.blocks) for cache in caches] == [1, 4]
    for step in range(4):
        assert caches[0].read(step, (0, 1)) == caches[1].read(step, (0, 1))
        assert caches[0].read(step, (1,)) == caches[1].read(step, (0, 1))[1:]


def test_a_stage_trains_from_it(config, folder):
    """The stage trains, and the teacher's memory is freed."""
    transfer(dataclasses.replace(config, run=str(folder / "run_cached")))
    lines = (folder / "run_cached" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert len(metrics) == 4 and metrics[-1]["kl"] < metrics[0]["kl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: dataclasses.replace(c, seed=1), "seed is 0 there and 1 here"),
        (lambda c: with_cache(c, "nowhere"), "is not there; make it"),
        (lambda c: staged(c, steps=9), "has 4 complete steps and the stage takes 9"),
        (lambda c: staged(c, data=dataclasses.replace(c.stages[0].data, length=12)), "length is"),
        (
            lambda c: with_cache(c, c.stages[0].teacher_cache.folder, tokens=5),
            "tokens is 16 there and 5 here",
        ),
    ],
)
def test_a_cache_that_does_not_fit(config, change, message, tmp_path):
    """The transfer ends in one sentence before anything is computed."""
    changed = dataclasses.replace(change(config), run=str(tmp_path / "run"))
    with pytest.raises(UserError, match=message):
        transfer(changed)
    assert not (tmp_path / "run").exists()


def staged(config, **changes):
    return dataclasses.replace(config, stages=(dataclasses.replace(config.stages[0], **changes),))


def test_a_cache_of_another_teacher_or_of_other_text(config, corpus, folder, tmp_path):
    stage = config.stages[0]
    found = json.loads((folder / "cache" / "manifest.json").read_text())
    checksum = found["teacher"]["checksum"]
    check_cache(stage, config.seed, small.TEACHER, checksum, corpus)
    with pytest.raises(UserError, match=r"teacher\.checksum is"):
        check_cache(stage, config.seed, small.TEACHER, checksum + 1, corpus)
    text = small.Path(stage.data.text.folder) / "00.py"
    before = text.read_text()
    text.write_text("x = 1\n" * 40)
    try:
        other = load_corpus(small.Path(config.teacher) / "tokenizer.json", small.TEACHER)
        with pytest.raises(UserError, match="was made of other text"):
            check_cache(stage, config.seed, small.TEACHER, checksum, other)
    finally:
        text.write_text(before)
    with pytest.raises(
        UserError, match="holds a different teacher cache: seed is 0 there and 1 here"
    ):
        cache_teacher.cache_teacher(dataclasses.replace(config, seed=1))


def test_no_stage_has_one(config):
    with pytest.raises(UserError, match="no stage has a teacher_cache"):
        cache_teacher.cache_teacher(staged(config, teacher_cache=None))


@pytest.mark.parametrize("vocab", [300, 151936])
def test_rows_to_bytes_and_back(vocab):
    rng = np.random.default_rng(0)
    row = RowFormat(length=5, tokens=3, vocab=vocab)
    ids_TK = rng.integers(0, vocab, (5, 3)).astype(np.int32)
    log_p_TK = rng.normal(size=(5, 3)).astype(np.float16)
    tail_T = rng.uniform(size=5).astype(np.float32)
    record = row.encode(ids_TK, log_p_TK, tail_T, 2**32 - 5)
    assert len(record) == row.bytes
    kept, checksum = row.decode(record)
    assert checksum == 2**32 - 5
    for a, b in zip(kept, (ids_TK, log_p_TK, tail_T), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_that_two_processes_wrote(tmp_path):
    """Rows are read in any order, whoever wrote them; a block with a short file does not count."""
    (tmp_path / "blocks").mkdir()
    found = {"data": {"length": 5}, "tokens": 3, "teacher": {"vocab": 300}}
    for first in (0, 2):
        parts = []
        for process, rows in enumerate([(0, 2), (1, 3)]):
            name = part_name(first, process)
            writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
            for step in range(first, first + 2):
                for row in rows:
                    writer.write(f"step {step} row {row}".encode())
            writer.close()
            parts.append(Part(name=name, rows=rows, bytes=(tmp_path / name).stat().st_size))
        write_block(tmp_path, Block(first=first, steps=2, parts=tuple(parts), state=None))
    folder = CacheFolder(tmp_path, found)
    assert folder.steps == 4
    assert folder.read(3, (3, 0, 1)) == [b"step 3 row 3", b"step 3 row 0", b"step 3 row 1"]
    with (tmp_path / part_name(2, 1)).open("ab") as file:
        file.truncate(10)
    assert CacheFolder(tmp_path, found).steps == 2


def test_one_process_writes_every_row():
    assert rows_of_writers(None, 3) == {0: (0, 1, 2)}
