"""Runs two real processes: killed, stopped by a signal, resumed, restored elsewhere."""

import dataclasses
import os
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import pytest

from hydrahead_jax.sharding import MeshConfig
from tests.train import pair, small
from tests.train.processes import Member, finish, launch, wait
from train.distributed import EXIT_CODE, Gate, PeerLost, barrier, monitor, team
from train.distributed.team import Beat
from train.files.param_paths import flatten, unflatten
from train.files.run_folder import CHECKPOINTS
from train.run.checkpoint import CheckpointStore
from train.run.loop import restore
from train.run.saved_model import load_run

STEPS = 8
WITHIN = 120  # seconds for everything that waits


def real_pair(test):
    only_in = pytest.mark.only_in("test-latest", "a minute of CPU")
    return pytest.mark.multiprocess(only_in(test))


def start(folder: Path) -> list[Member]:
    arguments = ["-W", "error", "-m", "tests.train.pair", str(folder), str(STEPS), "fsdp=8"]
    return launch(arguments, folder / "logs", processes=2, devices=4)


def logged(folder: Path) -> list[int]:
    return [line["step"] for line in small.logged(folder / "run")]


def wait_for_step(folder: Path, step: int) -> None:
    end = time.monotonic() + WITHIN
    while step not in logged(folder):
        assert time.monotonic() < end, f"step {step} was not reached"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns the folder of a pair that was left alone."""
    folder = tmp_path_factory.mktemp("pair")
    small.write_texts(folder / "text")
    finish(start(folder))
    return folder


def parameters(folder: Path) -> dict:
    return flatten(load_run(folder / "run")[1])


@real_pair
def test_a_pair_that_is_stopped_and_killed_resumes_together(uninterrupted, tmp_path):
    """A signal to one process stops both at one step.

    When one is killed, the other names it in time. The parameters are those of a pair that was left
    alone.
    """
    shutil.copytree(uninterrupted / "text", tmp_path / "text")
    shutil.copytree(uninterrupted / "logs" / "cache", tmp_path / "logs" / "cache")
    members = start(tmp_path)
    wait_for_step(tmp_path, 2)
    os.kill(members[1].process.pid, signal.SIGTERM)
    outputs = finish(members)
    stopped = logged(tmp_path)[-1]
    assert 2 <= stopped < STEPS
    assert f"stopped by a signal after step {stopped}, stage 'finetune'" in outputs[0]
    assert "the same command continues from there" in outputs[0]
    assert "stopped" not in outputs[1]
    assert str(stopped) in [path.name for path in (tmp_path / "run" / CHECKPOINTS).iterdir()]

    members = start(tmp_path)
    wait_for_step(tmp_path, stopped + 1)
    os.kill(members[1].process.pid, signal.SIGKILL)
    killed = time.monotonic()
    assert members[0].process.wait(WITHIN) == EXIT_CODE
    assert time.monotonic() - killed < 4 + 15, "the timeout of 4 s, some to explain and to leave"
    wait(members)
    output = members[0].output()
    assert f"resuming {tmp_path / 'run'} at step {stopped} of {STEPS}" in output
    assert output.count("error: process 1 (host ") == 1
    assert "is dead: nothing heard of it for" in output and "last step" in output

    finish(start(tmp_path))
    small.assert_bitwise(parameters(tmp_path), parameters(uninterrupted))
    assert logged(tmp_path) == list(range(1, STEPS + 1))


@real_pair
def test_checkpoint_of_a_pair_on_another_mesh_and_process_count(uninterrupted):
    """The parameters and the position in the data are the same in one process on one device."""
    said = []
    job = pair.job(uninterrupted, STEPS, MeshConfig())
    job = dataclasses.replace(job, say=said.append)
    store = CheckpointStore(job.folder / CHECKPOINTS)
    try:
        saved = restore(job, store)
    finally:
        store.close()
    assert said == [] and saved.step == STEPS
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(saved.state)} == {1}
    small.assert_bitwise(saved.state.trainable | saved.frozen, parameters(uninterrupted))
    assert flatten(unflatten(saved.state.trainable)).keys() == parameters(uninterrupted).keys()


def beat(count: int, step: int, host: str, left: str | None = None) -> Beat:
    return Beat(count, step, "step", host, left)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            {0: beat(5, 7, "a"), 1: beat(5, 6, "b")},
            {0: beat(8, 7, "a"), 1: beat(8, 6, "b")},
            r"step 7 took longer than 9 s: process 1 \(host b, last step 6\) is late; start all",
        ),
        (
            {0: beat(5, 7, "a"), 1: beat(5, 7, "b")},
            {0: beat(8, 7, "a"), 1: beat(5, 7, "b")},
            r"step 7 took longer than 9 s: process 1 \(host b, last step 7\) "
            r"has stopped sending heartbeats",
        ),
        (
            {0: beat(5, 7, "a"), 1: beat(5, 7, "b")},
            {0: beat(8, 7, "a"), 1: beat(8, 7, "b")},
            "step 7 took longer than 9 s on all processes, none is behind",
        ),
    ],
)
def test_a_step_that_takes_too_long_names_who_is_behind(before, after, sentence, monkeypatch):
    answers = iter((before, after))
    monkeypatch.setattr(team, "beats", lambda: next(answers))
    monkeypatch.setattr(monitor, "BEAT_SECONDS", 0.01)
    watching = monitor.Monitor(peer_timeout=60)
    watching.progress(7, "step", 9.0)
    assert watching.judge(time.monotonic()) is None
    assert re.match(sentence, watching.judge(time.monotonic() + 9.1))


def test_silence_and_farewells_are_noticed_and_compiling_may_take_any_time():
    watching = monitor.Monitor(peer_timeout=60)
    now = time.monotonic()
    watching.progress(7, "step", None)
    assert watching.judge(now + 10_000) is None
    watching.heard = {1: (beat(3, 6, "b"), now)}
    assert watching.judge(now + 59) is None
    assert re.match(
        r"process 1 \(host b, last step 6\) is dead: nothing heard of it for 61 s; start all",
        watching.judge(now + 61),
    )
    watching.heard = {1: (beat(3, 6, "b", left="the disk is full"), now)}
    assert watching.judge(now) == "process 1 (host b, last step 6) ended: the disk is full"


def test_the_gate_opens_until_the_step_that_all_processes_agree_on(monkeypatch):
    """This process has begun step 4 when another that has begun 6 asks to stop."""
    published = {}
    monkeypatch.setattr(team, "count", lambda: 2)
    monkeypatch.setattr(team, "put", lambda key, value: published.update({key[-1]: value}))
    monkeypatch.setattr(team, "folder", lambda prefix: published)
    gate = Gate()
    assert gate.opens_for(4)
    gate.close()
    assert published == {"0": 4}
    published["1"] = 6
    gate.close()
    assert [gate.opens_for(step) for step in (5, 6, 7)] == [True, True, False]


def test_a_barrier_names_who_is_missing(monkeypatch):
    class Client:
        def wait_at_barrier(self, key, milliseconds):
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    answers = {"hydrahead/beats/": {"2": [9, 40, "step", "c", None]}}
    monkeypatch.setattr(team, "count", lambda: 3)
    monkeypatch.setattr(team, "client", Client)
    monkeypatch.setattr(team, "put", lambda key, value: None)
    monkeypatch.setattr(team, "folder", lambda prefix: answers.get(prefix, {"0": True, "1": True}))
    with pytest.raises(
        PeerLost, match=r"barrier 'save': after 5 s .* process 2 \(host c, last step 40\); start"
    ):
        barrier("save", 5)
