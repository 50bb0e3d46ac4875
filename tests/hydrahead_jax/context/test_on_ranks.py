"""Checks that ring attention, state passing and the halo on fake devices equal one device."""

import json
import os
import subprocess
import sys

import pytest

from tests.hydrahead_jax.context.cases import HEAVY_RUNS, ROWS, RUNS
from tests.root import ROOT

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


def compare(*arguments: str) -> dict:
    process = subprocess.run(
        [sys.executable, "-m", "tests.hydrahead_jax.context.on_ranks", *arguments],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report() -> dict:
    return compare()


@pytest.fixture(scope="module")
def heavy_report() -> dict:
    return compare("heavy")


def assert_equal(found: dict, run) -> None:
    assert (
        len(found)
        == {"attention": 4, "null": 4, "delta": 8, "slots": 9, "conv": 4}[run.op.split()[0]]
    )
    wrong = {
        f"{name}, {ROWS[row] if name != 'gradient of weight_WNH' else f'tap {row}'}": error
        for name, errors in found.items()
        for row, error in enumerate(errors)
        if not error <= TOLERANCE[run.dtype]
    }
    assert not wrong


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_equals_one_device(report, run):
    assert_equal(report[str(run)], run)


@pytest.mark.heavy
@pytest.mark.parametrize("run", HEAVY_RUNS, ids=str)
def test_equals_one_device_in_float32(heavy_report, run):
    assert_equal(heavy_report[str(run)], run)
