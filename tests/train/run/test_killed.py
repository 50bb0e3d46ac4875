"""Kills real processes in every stage, starts them again, and uses the finished run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import quick
from tests.root import ROOT
from tests.train import small
from train.__main__ import main
from train.files.param_paths import flatten
from train.files.run_folder import CHECKPOINTS, PLAN, TOKENIZER
from train.run.saved_model import load_run

pytestmark = [pytest.mark.multiprocess, pytest.mark.only_in("test", "minutes of CPU")]

STEPS, CHECKPOINT_EVERY, KILL_AT = 40, 4, 6


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Makes a folder with teacher, text and config, and a compilation cache for all processes."""
    folder = tmp_path_factory.mktemp("work")
    small.write_config(folder, steps=STEPS, checkpoint_every=CHECKPOINT_EVERY)
    return folder


def start(work: Path, run: Path) -> subprocess.Popen:
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(work / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": quick.FLAGS,
    }
    command = [sys.executable, "-W", "error", "-m", "train", "transfer"]
    return subprocess.Popen(
        [*command, str(work / "experiment.py"), f"run={run}"],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def finished(work):
    """Returns the folder of a run that was left alone."""
    finish(start(work, work / "run"))
    return work / "run"


def kill_in(stage: str, work: Path, run: Path) -> None:
    """Starts the run and kills it once the stage has logged step KILL_AT."""
    process = start(work, run)
    try:
        while process.poll() is None:
            steps = [line for line in small.logged(run) if line["stage"] == stage]
            if len(steps) >= KILL_AT:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, output
    finally:
        process.kill()
    last = small.logged(run)[-1]
    assert last["stage"] == stage and last["step"] % STEPS, "the stage was over before the kill"


def assert_same_parameters(run: Path, other: Path) -> None:
    (config, params), (other_config, other_params) = load_run(run), load_run(other)
    assert config == other_config
    params, other_params = flatten(params), flatten(other_params)
    assert params.keys() == other_params.keys()
    for path, leaf in params.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other_params[path]), path)


def test_killed_in_each_stage(work, finished):
    run = work / "killed"
    for stage in ("align", "distill", "finetune"):
        kill_in(stage, work, run)
    output = finish(start(work, run))
    assert f"resuming {run} at step " in output
    assert_same_parameters(run, finished)
    assert [line["step"] for line in small.logged(run)] == list(range(1, 3 * STEPS + 1))


def test_finished_run_says_so(work, finished, capsys):
    assert main(["transfer", str(work / "experiment.py"), f"run={finished}"]) == 0
    assert f"{finished} is finished, {3 * STEPS} steps; nothing to do" in capsys.readouterr().out


def test_damaged_newest_checkpoint_is_said_and_repaired(work, finished, capsys):
    run = work / "flawed"
    shutil.copytree(finished, run)
    newest = run / CHECKPOINTS / str(3 * STEPS)
    for path in (newest / "params").glob("ocdbt.process_0/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    assert main(["evaluate", str(run)]) == 1
    assert "has changed); run the command of this run again" in capsys.readouterr().err
    output = finish(start(work, run))
    sentences = [line for line in output.splitlines() if "damaged" in line]
    assert len(sentences) == 1
    assert f"step {3 * STEPS} is damaged" in sentences[0]
    assert sentences[0].endswith(f"continuing from the one at step {3 * STEPS - CHECKPOINT_EVERY}")
    assert_same_parameters(run, finished)


def test_run_folder_is_self_describing(finished):
    assert load_run(finished)[0] == small.STUDENT
    assert (finished / PLAN).is_file() and (finished / TOKENIZER / "tokenizer.json").is_file()
    assert (finished / TOKENIZER / "tokenizer_config.json").is_file()


def test_evaluate_and_export_need_only_the_run(work, finished, capsys):
    teacher = work / "teacher"
    hidden = teacher.rename(work / "hidden")
    try:
        text, report = work / "text", work / "report.json"
        settings = ["lengths=(48,)", "documents=2", "needles=2", "text_windows=2", "batch=2"]
        command = ["evaluate", str(finished), *settings, "--text", str(text), "--out", str(report)]
        assert main(command) == 0
        assert set(json.loads(report.read_text())["niah_single"]) == {"48"}
        assert main(["export", str(finished), "--out", str(work / "export")]) == 0
        assert "exported to" in capsys.readouterr().out
    finally:
        hidden.rename(teacher)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in (work / "export").iterdir()
    }
