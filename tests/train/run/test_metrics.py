"""Checks settings of a run, and metrics beside the loss."""

import importlib.machinery
import subprocess
import sys
import types

import pytest

from hydrahead_jax.errors import UserError
from tests.root import ROOT
from train.files.run_folder import METRICS
from train.run.metrics import MetricsLog, check_wandb
from train.run.settings import RunSettings
from train.run.throughput import peak_flops


def test_peak_of_a_device_is_that_of_its_cores():
    assert peak_flops("NVIDIA H200") == 989.4e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("TPU7x") == 2307e12 / 2
    assert peak_flops("cpu") is None


def test_tensorboard_is_written_without_importing_pytorch(tmp_path):
    code = (
        "import pathlib, sys; from train.run.metrics import MetricsLog\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]), 'metrics.jsonl', step=0)\n"
        "log.write(1, 'align', {'loss': 0.5}); log.close(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=ROOT)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_weights_and_biases_is_used_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_wandb(None)
    with pytest.raises(UserError, match="pip install wandb"):
        check_wandb("project")
    told = []
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init = lambda **options: types.SimpleNamespace(
        log=lambda values, step: told.append((options["project"], options["resume"], step, values)),
        finish=lambda: told.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    check_wandb("project")
    log = MetricsLog(tmp_path, METRICS, 0, "project")
    log.write(3, "align", {"loss": 0.5})
    log.close()
    assert told == [("project", "allow", 3, {"align/loss": 0.5}), "finished"]


@pytest.mark.parametrize(
    "settings",
    [{"keep_checkpoints": 0}, {"max_skipped": 0}, {"step_timeout": 0}, {"peer_timeout": 1000}],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RunSettings(**settings)
