"""Two real processes: killed, stopped by a signal, resumed, restored elsewhere."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.sharding import MeshConfig
from tests.train import pair, small
from tests.train.processes import Member, finish, launch, wait
from train.checkpoint import CheckpointStore
from train.distributed import EXIT_CODE
from train.distributed.cluster import Cluster, find_cluster
from train.loop import restore
from train.paths import flatten, unflatten
from train.run_folder import CHECKPOINTS, METRICS
from train.saved_model import load_run

STEPS = 8
WITHIN = 60  # seconds for everything that waits


def start(folder: Path) -> list[Member]:
    arguments = ["-W", "error", "-m", "tests.train.pair", str(folder), str(STEPS), "fsdp=8"]
    return launch(arguments, folder / "logs", processes=2, devices=4)


def logged(folder: Path) -> list[int]:
    path = folder / "run" / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def wait_for_step(folder: Path, step: int) -> None:
    end = time.monotonic() + WITHIN
    while step not in logged(folder):
        assert time.monotonic() < end, f"step {step} was not reached"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a pair that was left alone."""
    folder = tmp_path_factory.mktemp("pair")
    small.write_texts(folder / "text")
    finish(start(folder))
    return folder


def parameters(folder: Path) -> dict:
    return flatten(load_run(folder / "run")[1])


def assert_bitwise(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(np.asarray(actual[path]), np.asarray(leaf), err_msg=path)


def test_a_pair_that_is_stopped_and_killed_resumes_together(uninterrupted, tmp_path):
    """A signal to one stops both at one step; a kill of one is named by the other in time; the
    parameters are those of a pair that was left alone."""
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
    assert_bitwise(parameters(tmp_path), parameters(uninterrupted))
    assert logged(tmp_path) == list(range(1, STEPS + 1))


def test_checkpoint_of_a_pair_on_another_mesh_and_process_count(uninterrupted):
    """The parameters and the position in the data are the same in one process on one device."""
    job = pair.job(uninterrupted, STEPS, MeshConfig())
    said = []
    store = CheckpointStore(job.folder / CHECKPOINTS)
    try:
        saved = restore(job, store)
    finally:
        store.close()
    assert said == [] and saved.step == STEPS
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(saved.state)} == {1}
    assert_bitwise(saved.state.trainable | saved.frozen, parameters(uninterrupted))
    assert flatten(unflatten(saved.state.trainable)).keys() == parameters(uninterrupted).keys()


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "16",
}
JOB = {"JAX_COORDINATOR_ADDRESS": "run-0.run:1234", "JAX_NUM_PROCESSES": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, Cluster(None, None, None)),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, None),
        (JOB | {"JOB_COMPLETION_INDEX": "3"}, Cluster("run-0.run:1234", 4, 3)),
        (JOB | {"JAX_PROCESS_ID": "2"} | SLURM, Cluster("run-0.run:1234", 4, 2)),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Cluster(None, None, None)),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, Cluster(None, None, None)),
    ],
)
def test_the_environment_says_which_processes_there_are(environment, expected):
    assert find_cluster(None, None, None, environment) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("10.0.0.1:1234", 2, 1), Cluster("10.0.0.1:1234", 2, 1)),
        (("auto", None, None), Cluster(None, None, None)),
        ((None, 1, None), None),
        (("10.0.0.1:1234", 1, 0), None),
    ],
)
def test_flags_come_before_the_environment(flags, expected):
    assert find_cluster(*flags, SLURM) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("10.0.0.1:1234", 2, None), {}, "several processes need all of --coordinator"),
        ((None, 2, 1), {}, "several processes need all of"),
        (("10.0.0.1", 2, 1), {}, "'10.0.0.1' is not of the form host:port"),
        (("a:99999", 2, 1), {}, "not of the form host:port"),
        (("a:1234", 2, 2), {}, "process 2 is not one of 2"),
        ((None, None, None), JOB, "need all of JAX_COORDINATOR_ADDRESS"),
        ((None, None, None), JOB | {"JAX_PROCESS_ID": "x"}, "'x' is not a number"),
    ],
)
def test_a_cluster_that_does_not_fit_together_is_refused(flags, environment, message):
    with pytest.raises(UserError, match=message):
        find_cluster(*flags, environment)
