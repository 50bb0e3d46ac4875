"""Checks that two processes of four devices compute what one device does."""

import numpy as np
import pytest

from tests.train import processes
from tests.train.run import first_step

pytestmark = [pytest.mark.heavy, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def on_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    out = folder / "found.npz"
    members = processes.launch(
        ["-m", "tests.train.run.first_step", str(out)], folder, processes=2, devices=4
    )
    processes.finish(members, timeout=900)
    return np.load(out)


@pytest.mark.parametrize("name", first_step.CASES)
def test_first_step_equals_that_of_one_device(on_processes, name):
    prefix = f"{name}, expected: "
    expected = {key.removeprefix(prefix): key for key in on_processes if key.startswith(prefix)}
    assert {"loss", "gradient_norm"} < set(expected) and len(expected) > 20
    of_heads = first_step.OF_HEADS
    statistics = {key: expected.pop(key) for key in list(expected) if key.startswith(of_heads)}
    assert len(statistics) == (2 if "native" in name else 3)  # one or two layers and their mean
    for key, place in statistics.items():
        found = on_processes[f"{name}, found: {key}"]
        np.testing.assert_allclose(found, on_processes[place], rtol=2e-6)
    for key, place in expected.items():
        found, value = on_processes[f"{name}, found: {key}"], on_processes[place]
        assert value.dtype == np.float64
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-9 * np.abs(value).max())
