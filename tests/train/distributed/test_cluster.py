"""Checks how a process finds the others: flags first, then the environment."""

import pytest

from hydrahead_jax.errors import UserError
from train.distributed.cluster import Cluster, find_cluster

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
        (("10.0.0.1", 2, 1), {}, "'10.0.0.1' must be of the form host:port"),
        (("a:99999", 2, 1), {}, "must be of the form host:port"),
        (("a:1234", 2, 2), {}, "process 2 must be one of 0 to 1"),
        ((None, None, None), JOB, "need all of JAX_COORDINATOR_ADDRESS"),
        ((None, None, None), JOB | {"JAX_PROCESS_ID": "x"}, "'x' is not a number"),
    ],
)
def test_a_cluster_that_does_not_fit_together_is_refused(flags, environment, message):
    with pytest.raises(UserError, match=message):
        find_cluster(*flags, environment)
