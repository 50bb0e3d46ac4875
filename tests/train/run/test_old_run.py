"""Checks that a run which an older commit began ends with the numbers of that commit.

The archive was made with commit 3f8396b and jax 0.10.2, with the XLA_FLAGS of tests/quick.py. In an
empty folder that commit ran

    config = small.transfer_config(Path("."), steps=4, checkpoint_every=2)
    transfer(dataclasses.replace(config, running=RunSettings(keep_checkpoints=1)))

with `small` from its tests/train. SIGKILL ended it in the second of three stages, after the
checkpoint of step 6 of 12. `expected` holds metrics.jsonl and the final parameters of the same
command in another folder, where nothing ended it. TensorBoard's files are left out.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from hydrahead_jax.dataclass_json import from_plain
from hydrahead_jax.json_file import read_json
from train.commands.transfer import TransferConfig, transfer
from train.files.param_paths import flatten
from train.files.run_folder import CHECKPOINTS, CONFIG, METRICS

ARCHIVE = Path(__file__).with_name("old_run.tar.gz")


def measured(path: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without what depends on the computer's speed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: line[name] for name in line if "second" not in name} for line in lines]


def computes_the_same_bits(made_by: dict) -> bool:
    """Returns whether this is the jax that made the archive, on a CPU of the same kind."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text().partition("flags")[2].partition("\n")[0] if path.is_file() else ""
    vectors = sorted(f for f in flags.split() if f.startswith(("avx", "fma", "amx", "sse")))
    return made_by == {"jax": jax.__version__, "vectors": " ".join(vectors)}


def test_old_run_continues_to_the_old_numbers(tmp_path, monkeypatch):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in Path("run", CHECKPOINTS).iterdir()] == ["6"]
    fields = read_json(Path("run", CONFIG))["config"]
    fields |= {"run": "run", "head_plan": "head_plan.json"}
    config = from_plain(TransferConfig, fields)
    said = []
    _, params = transfer(config, said.append)
    assert "resuming run at step 6 of 12" in said
    found, expected = measured(Path("run", METRICS)), measured(Path("expected", METRICS))
    params = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    old_params = dict(np.load("expected/params.npz"))
    assert params.keys() == old_params.keys()
    if computes_the_same_bits(read_json(Path("expected/made_by.json"))):
        assert found == expected
        for path, leaf in old_params.items():
            np.testing.assert_array_equal(params[path], leaf, path)
    for new, old in zip(found, expected, strict=True):
        assert new.pop("stage") == old.pop("stage")
        assert new == pytest.approx(old, rel=1e-4)
    for path, leaf in old_params.items():
        np.testing.assert_allclose(params[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)
