"""Checks one process: steps that are not finite, signals, full or read-only disks, slow data."""

import contextlib
import dataclasses
import os
import resource
import signal
import time

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.sharding import MeshConfig
from tests.train import pair, small
from train import distributed
from train.data.batches import make_batches
from train.files.param_paths import flatten
from train.files.run_folder import CHECKPOINTS
from train.run import disk, loop, stage_loop
from train.run.nonfinite_steps import FOLDER
from train.run.prefetch import Prefetch

STEPS = 8  # with checkpoints at 4 and 8


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns (job, the parameters at the end)."""
    folder = tmp_path_factory.mktemp("run")
    small.write_texts(folder / "text")
    (folder / "run").mkdir()
    job = pair.job(folder, STEPS, MeshConfig())
    return job, loop.run(job).params


@pytest.fixture
def job(uninterrupted, tmp_path):
    """Returns the same run in a folder of its own; its step is compiled already."""
    (tmp_path / "run").mkdir()
    return dataclasses.replace(uninterrupted[0], folder=tmp_path / "run")


def change_batches(monkeypatch, change) -> None:
    """Passes every batch that is made through change(number from 1, batch)."""

    class Changed:
        def __init__(self, batches):
            self._batches, self._number = batches, 0
            self.get_state, self.set_state = batches.get_state, batches.set_state

        def __next__(self):
            self._number += 1
            return change(self._number, next(self._batches))

    monkeypatch.setattr(stage_loop, "make_batches", lambda *args: Changed(make_batches(*args)))


def poisoned(*numbers: int):
    def change(number, batch):
        if number not in numbers:
            return batch
        return dataclasses.replace(batch, loss_weight_BT=batch.loss_weight_BT * np.float32("nan"))

    return change


def test_a_step_that_is_not_finite_is_skipped_counted_and_kept(job, monkeypatch):
    change_batches(monkeypatch, poisoned(3, 4, 6))
    said = []
    settings = dataclasses.replace(job.running, max_skipped=3)
    result = loop.run(dataclasses.replace(job, running=settings, say=said.append))
    assert all(np.isfinite(leaf).all() for leaf in flatten(result.params).values())
    lines = small.logged(job.folder)
    assert [line["skipped"] for line in lines] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert ["loss" in line for line in lines] == [n not in (3, 4, 6) for n in range(1, 9)]
    files = sorted(path.name for path in (job.folder / FOLDER).iterdir())
    assert files == [f"finetune_{step}_process_0.npz" for step in (3, 4, 6)]
    with np.load(job.folder / FOLDER / files[0]) as batch:
        assert batch["tokens_BT"].shape == (8, 24) and np.isnan(batch["loss_weight_BT"]).all()
        np.testing.assert_array_equal(batch["rows"], range(8))
    sentence = next(s for s in said if "step 4 " in s and "changed nothing" in s)
    assert "loss" in sentence and "(2 in a row, 3 stop the run)" in sentence


def test_too_many_in_a_row_stop_the_run_and_keep_the_last_checkpoint(job, monkeypatch):
    change_batches(monkeypatch, poisoned(5, 6))
    settings = dataclasses.replace(job.running, max_skipped=2)
    with pytest.raises(loop.Diverged, match=r"diverged by step 6: .*loss.* not finite for 2 steps"):
        loop.run(dataclasses.replace(job, running=settings))
    assert [path.name for path in (job.folder / CHECKPOINTS).iterdir()] == ["4"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_the_run_resumes(
    number, job, uninterrupted, monkeypatch
):
    before = signal.getsignal(number)

    def change(count, batch):
        if count == 6:
            os.kill(os.getpid(), number)
        return batch

    with monkeypatch.context() as patch:
        change_batches(patch, change)
        with pytest.raises(distributed.Stopped, match="the same command continues") as stopped:
            loop.run(job)
    assert signal.getsignal(number) == before
    step = small.logged(job.folder)[-1]["step"]
    assert f"stopped by a signal after step {step}, stage 'finetune'" in str(stopped.value)
    assert step in (4, 5, 6)
    said = []
    result = loop.run(dataclasses.replace(job, say=said.append))
    assert f"resuming {job.folder} at step {step} of {STEPS}" in said
    small.assert_bitwise(result.params, uninterrupted[1])


@contextlib.contextmanager
def files_of_at_most(size: int):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("size", "what"), [(64, "metrics"), (16384, "the checkpoint of step 8")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # left by orbax
def test_a_write_that_fails_names_the_last_checkpoint_and_loses_nothing(
    size, what, job, uninterrupted, monkeypatch
):
    """After a complete checkpoint the file system takes no file of more than `size` bytes."""
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:

        def change(count, batch):
            if count == 6:
                while not (job.folder / CHECKPOINTS / "4" / "checksums.json").is_file():
                    time.sleep(0.01)
                stack.enter_context(files_of_at_most(size))
            return batch

        change_batches(patch, change)
        with pytest.raises(disk.WriteFailed, match=f"could not write {what} in ") as failed:
            loop.run(job)
    assert ": File too large; the last complete checkpoint is step 4; " in str(failed.value)
    assert "give the same command again to continue" in str(failed.value)
    result = loop.run(job)
    small.assert_bitwise(result.params, uninterrupted[1])


def test_an_error_in_the_data_is_raised_where_its_batch_is_due():
    class Three:
        count = 0

        def __next__(self):
            self.count += 1
            if self.count == 3:
                raise UserError("bad text")
            return self.count

        def get_state(self):
            return {"count": self.count}

    prefetch = Prefetch(Three(), lambda batch: 10 * batch)
    try:
        first, _ = prefetch.next()
        second, waited = prefetch.next()
        assert (first.batch, first.placed, first.position) == (1, 10, {"count": 1})
        assert second.position == {"count": 2} and waited >= 0
        with pytest.raises(UserError, match="bad text"):
            prefetch.next()
    finally:
        prefetch.close()


def test_metrics_say_how_fast_it_goes(uninterrupted):
    lines = small.logged(uninterrupted[0].folder)
    for line in lines:
        assert 0 < line["tokens_per_second"] <= line["padded_tokens_per_second"]
        assert 0 <= line["data_wait_seconds"]
        padded = 8 * 24 / line["seconds_per_step"]
        np.testing.assert_allclose(line["padded_tokens_per_second"], padded)
    assert "mfu" not in lines[0], "nobody says what a CPU can do"
