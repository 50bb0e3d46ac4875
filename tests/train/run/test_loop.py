"""Checks stages, checkpoints and resuming, in one process."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from hydrahead_jax.models import init_params
from tests.train import small
from train.files.param_paths import flatten, split
from train.files.run_folder import CHECKPOINTS, METRICS, save_model
from train.run import loop, stage_loop
from train.run.prefetch import Prefetch
from train.run.saved_model import load_run
from train.run.settings import RunSettings
from train.run.train_step import init_state
from train.stage.stage import MIXERS


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small.write_texts(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    """Returns (folder, parameters) of a run of all three stages."""
    folder = tmp_path_factory.mktemp("run")
    result = loop.run(small.job(folder, text, small.stages(text)))
    assert not result.was_finished
    return folder, result.params


def stop_after(monkeypatch, count: int) -> None:
    """Makes the run end with Killed where it takes one more batch than `count`."""
    left = [count]

    class Stopping(Prefetch):
        def next(self):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return super().next()

    monkeypatch.setattr(stage_loop, "Prefetch", Stopping)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("steps", [2, 3])
def test_resumed_run_is_bitwise_the_same(stage, steps, text, uninterrupted, tmp_path, monkeypatch):
    """Each stage is killed at a checkpoint, and one step after it."""
    job = small.job(tmp_path, text, small.stages(text))
    with monkeypatch.context() as patch:
        stop_after(patch, 4 * stage + steps)
        with pytest.raises(Killed):
            loop.run(job)
    said = []
    result = loop.run(dataclasses.replace(job, say=said.append))
    assert f"resuming {tmp_path} at step {4 * stage + 2} of 12" in said
    small.assert_bitwise(result.params, uninterrupted[1])
    steps_logged = [line["step"] for line in small.logged(tmp_path)]
    assert steps_logged == list(range(1, 13))


def test_metrics_of_the_stages(uninterrupted):
    lines = small.logged(uninterrupted[0])
    assert [line["stage"] for line in lines] == ["align"] * 4 + ["distill"] * 4 + ["finetune"] * 4
    assert {"mse_layer_00", "mse_layer_01"} <= lines[0].keys()
    assert all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
    np.testing.assert_allclose(
        lines[0]["loss"], (lines[0]["mse_layer_00"] + lines[0]["mse_layer_01"]) / 2, rtol=1e-6
    )
    assert list((uninterrupted[0] / "tensorboard").glob("events*"))


def test_finished_run_is_left_alone(text, uninterrupted):
    folder, params = uninterrupted
    before = (folder / METRICS).read_bytes()
    result = loop.run(small.job(folder, text, small.stages(text)))
    assert result.was_finished
    small.assert_bitwise(result.params, params)
    assert (folder / METRICS).read_bytes() == before


def test_frozen_parameters_do_not_change(text, tmp_path):
    stages = small.stages(text)
    result = loop.run(small.job(tmp_path, text, stages[:1]))
    start = init_params(small.STUDENT, jax.random.key(2))
    trained, frozen = split(flatten(result.params), MIXERS)
    assert all("/mixer/" in path for path in trained)
    assert {"w_embed_VD", "layers/0/mixer_norm_D", "layers/1/mlp/w_up_DF"} <= frozen.keys()
    before = flatten(start)
    for path, leaf in frozen.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(before[path]), err_msg=path)
    for path, leaf in trained.items():
        assert not np.array_equal(np.asarray(leaf), np.asarray(before[path])), path


def test_optimizer_state_is_for_trained_parameters_only(text):
    state, frozen = init_state(small.stages(text)[0], init_params(small.STUDENT, jax.random.key(0)))
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in state.trainable.values()])
    assert not set(frozen) & set(state.trainable)


@pytest.fixture
def copied(uninterrupted, tmp_path):
    """Returns the folder of a copy of that run."""
    return shutil.copytree(uninterrupted[0], tmp_path / "run")


def run_again(folder, text, params: dict) -> list[str]:
    """Runs the stages in a folder, and returns what was said; they end with the parameters."""
    said = []
    result = loop.run(small.job(folder, text, small.stages(text), say=said.append))
    small.assert_bitwise(result.params, params)
    return said


@pytest.mark.parametrize("damage", ["truncate", "garbage", "missing"])
def test_damaged_checkpoint_falls_back(damage, text, uninterrupted, copied):
    newest = copied / CHECKPOINTS / "12"
    path = max(newest.glob("params/d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "truncate":
        path.write_bytes(content[:middle])
    elif damage == "missing":
        path.unlink()
    else:
        content[middle : middle + 64] = bytes(64)
        path.write_bytes(content)
    said = run_again(copied, text, uninterrupted[1])
    sentence = next(s for s in said if "damaged" in s)
    assert sentence.startswith("the checkpoint at step 12 is damaged (")
    assert sentence.endswith("; continuing from the one at step 10")
    small.assert_bitwise(load_run_params(copied), uninterrupted[1])


def load_run_params(folder):
    save_model(folder, small.STUDENT)
    config, params = load_run(folder)
    assert config == small.STUDENT
    return params


def test_all_checkpoints_damaged_starts_anew(text, uninterrupted, copied):
    for path in (copied / CHECKPOINTS).glob("*/data/metadata"):
        path.write_text("{")
    said = run_again(copied, text, uninterrupted[1])
    assert sum("damaged" in s for s in said) == 3
    end = "is damaged (data/metadata has changed); the run starts anew"
    assert any(s.endswith(end) for s in said)


def test_checkpoint_without_seal_is_not_trusted(text, uninterrupted, copied):
    """The process was killed between the last file and the checksums."""
    (copied / CHECKPOINTS / "12" / "checksums.json").unlink()
    said = run_again(copied, text, uninterrupted[1])
    assert "the checkpoint at step 12 is incomplete; continuing from the one at step 10" in said


def test_divergence_stops_and_keeps_the_last_checkpoint(text, tmp_path):
    align = small.stages(text)[0]
    job = small.job(tmp_path, text, (align,))
    wild = dataclasses.replace(align, optim=dataclasses.replace(align.optim, learning_rate=1e30))
    settings = RunSettings(max_skipped=1)
    with pytest.raises(loop.Diverged, match=r"'align' diverged by step 3: .*loss.* not finite"):
        loop.run(dataclasses.replace(job, stages=(wild,), running=settings))
    kept = sorted(int(p.name) for p in (tmp_path / CHECKPOINTS).iterdir())
    assert kept == [2]


def test_parameters_of_another_model_are_refused_before_the_first_step(text, tmp_path):
    job = small.job(tmp_path, text, small.stages(text))
    job = dataclasses.replace(job, initial=lambda: init_params(small.TEACHER, jax.random.key(0)))
    with pytest.raises(AssertionError, match="assert_trees_all_equal"):
        loop.run(job)
    assert not (tmp_path / METRICS).exists()
