"""Checks the launchers: their syntax, and that the commands in them exist."""

import math
import re
import signal
import subprocess
import time

import pytest
import yaml

from tests.root import ROOT
from train.__main__ import main
from train.commands.transfer import TransferConfig
from train.files.config_file import load_config

LAUNCH = ROOT / "train" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
UNTIL_FINISHED = LAUNCH / "until_finished.sh"


def container() -> dict:
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return pod["containers"][0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert script.stat().st_mode & 0o111, "is executed as it is"


@pytest.mark.parametrize("script", ["slurm.sh", "cloud_tpu.sh"])
def test_scripts_say_how_they_are_used(script):
    environment = {"PATH": "/usr/bin:/bin", "ZONE": "z", "TYPE": "t", "VERSION": "v"}
    command = ["bash", LAUNCH / script, "config.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "usage: " in done.stderr and "run=FOLDER" in done.stderr


def test_flags_of_the_launchers_are_flags_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["transfer", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    text = "".join(path.read_text() for path in (*SCRIPTS, ROOT / "docs" / "operations.md"))
    used = set()
    for command in re.findall(r"-m train transfer((?:[^\n]|\\\n)*)", text):
        used |= set(re.findall(r"(?<=\s)--[a-z-]+", command))
    assert {"--coordinator", "--processes", "--process"} <= used <= known


def test_job_set_runs_a_config_of_ours_on_all_hosts_of_its_slice():
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    chips = 1
    for size in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(size)
    per_pod = container()["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == chips // per_pod
    assert job["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
    script, run = container()["command"]
    assert (ROOT / script).is_file()
    python, *arguments = container()["args"]
    assert [python, *arguments[:3]] == ["python", "-m", "train", "transfer"]
    config = load_config(str(ROOT / arguments[3]), TransferConfig, tuple(arguments[4:]))
    assert config.run == run
    for stage in config.stages:
        assert math.prod((stage.mesh or config.mesh).sizes(chips).values()) == chips


@pytest.mark.parametrize(
    ("command", "finished", "code"),
    [("exit 0", True, 0), ("exit 0", False, 75), ("exit 1", False, 1), ("exit 70", True, 70)],
)
def test_until_finished_tells_a_stopped_run_from_a_finished_one(command, finished, code, tmp_path):
    if finished:
        (tmp_path / "finished.json").write_text("{}")
    done = subprocess.run([UNTIL_FINISHED, tmp_path, "bash", "-c", command])
    assert done.returncode == code


def test_until_finished_passes_the_signal_on(tmp_path):
    command = f"trap 'exit 0' TERM; touch {tmp_path}/ready; while true; do sleep 0.01; done"
    process = subprocess.Popen([UNTIL_FINISHED, tmp_path, "bash", "-c", command])
    while not (tmp_path / "ready").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
