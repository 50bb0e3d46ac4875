"""Kills a short run at random moments and compares the results: `python -m tests.chaos`.

A transfer of three stages in one process is killed 20 times. A pair of processes is killed 6
times, one of the two at random. Each is then started again with the same command. The parameters
at the end must be bitwise those of runs that were left alone.
"""

import argparse
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.root import ROOT
from tests.train import pair, small
from tests.train.processes import Member, finish, kill, launch, wait
from train.files.param_paths import flatten
from train.files.run_folder import METRICS, write_json
from train.files.versions import versions
from train.run.saved_model import load_run

PATIENCE = 300  # seconds


class Trial(NamedTuple):
    """Describes one kind of run.

    Attributes:
      name: name of the kind.
      begin: starts the run in a folder of that name, in all its processes.
      steps: steps of the run in all.
      interval: most steps that a kill may lose; checkpoints are made twice as often.
      kills: number of kills.
      stride: most steps to wait before a kill.
    """

    name: str
    begin: Callable[[str], list[Member]]
    steps: int
    interval: int
    kills: int
    stride: int


def one_process(folder: Path, kills: int) -> Trial:
    """Describes a transfer of three stages in one process."""
    steps, interval = 15 * kills, 20
    config = small.write_config(folder, steps=steps, checkpoint_every=interval // 2)

    def begin(run: str) -> list[Member]:
        arguments = ["-m", "train", "transfer", config, f"run={folder / run}"]
        return launch(arguments, folder / "logs", processes=1, devices=1)

    return Trial("one process, three stages", begin, 3 * steps, interval, kills, 60)


def two_processes(folder: Path, kills: int) -> Trial:
    """Describes one stage with parameters split over two processes of four devices each."""
    steps = 10 * kills

    def begin(run: str) -> list[Member]:
        made = folder / run
        small.write_texts(made / "text")
        arguments = ["-m", "tests.train.pair", str(made), str(steps), "fsdp=8"]
        return launch(arguments, folder / "logs", processes=2, devices=4)

    return Trial("two processes, fsdp=8", begin, steps, 2 * pair.CHECKPOINT_EVERY, kills, 12)


def last_step(run: Path) -> int:
    lines = small.logged(run)
    return lines[-1]["step"] if lines else 0


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.005)


def last_write(run: Path) -> int:
    path = run / METRICS
    return path.stat().st_mtime_ns if path.is_file() else 0


def kill_once(members: list[Member], run: Path, written: int, stride: int, rng) -> dict:
    """Kills one of the members at a random moment.

    In one of four cases that is while the run starts, but after the processes have found each
    other. `written` is the time of the run's last write.

    Returns:
      Which one, and the step that the run had logged.
    """
    victim = rng.randrange(len(members))
    try:
        while_starting = rng.random() < 0.25
        if while_starting:
            wait_until(lambda: len(members) == 1 or all(m.output() for m in members))
            time.sleep(rng.uniform(0, 4))
        else:
            wait_until(lambda: last_write(run) > written)  # lines beyond the checkpoint are gone
            target = last_step(run) + rng.randint(1, stride)
            wait_until(lambda: last_step(run) >= target)
            time.sleep(rng.uniform(0, 0.1))
        members[victim].process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        codes = wait(members, PATIENCE)
        assert codes[victim] == -signal.SIGKILL, members[victim].output()
    finally:
        kill(members)
    found = {"process": victim, "while_starting": while_starting, "step": last_step(run)}
    others = [code for index, code in enumerate(codes) if index != victim]
    if others:
        assert all(code != 0 for code in others), members[1 - victim].output()
        named = f"error: process {victim} " in members[1 - victim].output()
        found |= {"others_after_s": round(time.monotonic() - began, 1), "named": named}
        found["exit_codes"] = others
    return found


def measure(trial: Trial, folder: Path, rng: random.Random) -> dict:
    """Kills, resumes and compares; shows the table as it grows."""
    finish(trial.begin("whole"), PATIENCE)
    run = folder / "killed" if (folder / "whole" / METRICS).is_file() else folder / "killed/run"
    whole = run.parent / "whole" if run.name == "killed" else folder / "whole/run"
    rows = []
    while True:
        is_last, written = len(rows) == trial.kills, last_write(run)
        members = trial.begin("killed")
        if not is_last:
            row = kill_once(members, run, written, trial.stride, rng)
        outputs = finish(members, PATIENCE) if is_last else [m.output() for m in members]
        found = re.search(r"resuming .* at step (\d+) of", outputs[0])
        if rows and (found or is_last or not row["while_starting"]):
            settle(rows, int(found[1]) if found else 0, trial.interval)
        if is_last:
            break
        rows.append(row)
        print(f"{trial.name}: kill {len(rows)} of {trial.kills} at step {row['step']}", flush=True)
    equal = same_parameters(run, whole)
    most = max(row["lost"] for row in rows)
    found = {"kills": rows, "most_steps_lost": most, "bitwise_equal": equal}
    return {"trial": trial.name, "steps": trial.steps, "interval": trial.interval} | found


def settle(rows: list[dict], step: int, interval: int) -> None:
    """Fills in the steps lost by the kills since the last resumed start."""
    for row in rows:
        if "resumed_at" not in row:
            row |= {"resumed_at": step, "lost": max(0, row["step"] - step)}
            assert row["lost"] <= interval, row


def same_parameters(run: Path, other: Path) -> bool:
    parameters, expected = (flatten(load_run(folder)[1]) for folder in (run, other))
    return parameters.keys() == expected.keys() and all(
        np.array_equal(np.asarray(leaf), np.asarray(expected[path]))
        for path, leaf in parameters.items()
    )


def show(result: dict) -> None:
    table = Table(title=result["trial"])
    columns = ("kill", "process", "step reached", "resumed at", "steps lost", "named by the other")
    for column in columns:
        table.add_column(column, justify="right")
    for number, row in enumerate(result["kills"], 1):
        cells = (number, row["process"], row["step"], row["resumed_at"], row["lost"])
        table.add_row(*map(str, cells), str(row.get("named", "")))
    Console().print(table)
    verdict = "bitwise equal" if result["bitwise_equal"] else "DIFFERENT"
    print(f"{result['trial']}: at most {result['most_steps_lost']} steps lost, end {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of the run in one process")
    parser.add_argument("--pair-kills", type=int, default=6, help="of the run in two processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/chaos.json")
    options = parser.parse_args()
    rng, results = random.Random(options.seed), []
    for make, kills in ((one_process, options.kills), (two_processes, options.pair_kills)):
        if kills == 0:
            continue
        folder = Path(tempfile.mkdtemp(prefix="chaos_"))
        results.append(measure(make(folder, kills), folder, rng) | {"seed": options.seed})
        show(results[-1])
        shutil.rmtree(folder)
    write_json(options.json, {"trials": results, "versions": versions()})
    if not all(result["bitwise_equal"] for result in results):
        raise SystemExit("the parameters differ")


if __name__ == "__main__":
    main()
