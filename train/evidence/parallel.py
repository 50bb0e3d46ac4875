"""Runs several tasks at once, each in a process of its own on its share of the cores."""

import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from train.files.child_process import end_with_parent
from train.files.progress import Progress


class Task(NamedTuple):
    """Describes one run that a process of its own carries out.

    Attributes:
      work: a function that another process can import.
      arguments: arguments of the function.
      metrics: the metrics.jsonl that it writes; the last line says how far it is.
      steps: number of steps in all.
      log: file that takes what the function prints.
    """

    work: Callable
    arguments: tuple
    metrics: Path
    steps: int
    log: Path


def run_parallel(tasks: dict[str, Task], processes: int) -> dict[str, Any]:
    """Runs all tasks, `processes` at a time, and shows how far each is.

    Returns:
      name -> what the task's function returned.

    Raises:
      Whatever a task raised; tasks that have not begun are then dropped.
    """
    context = multiprocessing.get_context("spawn")
    shares = context.Queue()
    for share in _shares(processes):
        shares.put(share)
    with concurrent.futures.ProcessPoolExecutor(processes, context, _start, (shares,)) as pool:
        futures = {name: pool.submit(_run, task) for name, task in tasks.items()}
        try:
            _watch(tasks, futures)
            return {name: future.result() for name, future in futures.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def _shares(processes: int) -> list[list[int]]:
    """Returns the cores of each process; empty where the system does not tell them."""
    if not hasattr(os, "sched_getaffinity"):
        return [[]] * processes
    cores = sorted(os.sched_getaffinity(0))
    return [cores[index::processes] or cores for index in range(processes)]


def _start(shares) -> None:
    end_with_parent()
    share = shares.get()
    if share:
        os.sched_setaffinity(0, share)


def _run(task: Task):
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("a") as log, contextlib.redirect_stdout(log):
        with contextlib.redirect_stderr(log):
            return task.work(*task.arguments)


def _watch(tasks: dict[str, Task], futures: dict[str, concurrent.futures.Future]) -> None:
    """Shows the progress; returns when all tasks are done, or as soon as one has failed."""
    with Progress(functools.partial(print, flush=True)) as progress:
        while not all(future.done() for future in futures.values()):
            for name, task in tasks.items():
                progress(name, _steps_done(task.metrics), task.steps)
            if any(f.done() and f.exception() for f in futures.values()):
                return
            time.sleep(1)


def _steps_done(path: Path) -> int:
    lines = path.read_text().splitlines() if path.is_file() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:
        return 0
