"""Checks that versions of transformers below the supported range end in one sentence."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("version", ["5.20.0", "5.20.3", "5.0.0", "4.57.1"])
def test_an_older_version_is_one_sentence(folder, monkeypatch, version):
    """The config is the first file that transformers loads."""
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    path = folder / "configuration_hydrahead.py"
    spec = importlib.util.spec_from_file_location("configuration_of_another_version", path)
    with pytest.raises(ImportError) as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    message = str(caught.value)
    assert version in message and "5.21" in message and "transformers" in message
    assert len(message) < 300 and "\n" not in message


def test_remote_code_is_complete_without_our_package(folder, tmp_path):
    """The model runs in a process where hydrahead_jax and jax cannot be imported."""
    script = (
        "import sys; sys.modules['hydrahead_jax'] = sys.modules['jax'] = None\n"
        "import torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(\n"
        "    sys.argv[1], trust_remote_code=True)\n"
        "print(model.generate(torch.arange(1, 18)[None], max_new_tokens=4).shape[1])\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 21
    files = {path.name for path in tmp_path.rglob("*_hydrahead.py")}
    code = {path.name for path in folder.glob("*_hydrahead.py")}
    assert files == code
    assert json.loads((folder / "config.json").read_text())["auto_map"]
