import os
import time

import pytest

from train.evidence.parallel import Task, run_parallel


def work(name: str):
    print(f"this is {name}")
    time.sleep(0.2)
    return name, os.getpid(), len(os.sched_getaffinity(0))


def fail():
    raise RuntimeError("the student diverged")


def task(function, tmp_path, *arguments) -> Task:
    return Task(
        function, arguments, tmp_path / "metrics.jsonl", 1, tmp_path / "logs" / "output.log"
    )


def test_tasks_run_in_other_processes_and_what_they_print_goes_to_their_log(tmp_path):
    tasks = {name: task(work, tmp_path / name, name) for name in "ab"}
    results = run_parallel(tasks, 2)
    assert [results[name][0] for name in "ab"] == ["a", "b"]
    assert os.getpid() not in {results[name][1] for name in "ab"}
    assert (tmp_path / "a" / "logs" / "output.log").read_text() == "this is a\n"


def test_processes_share_the_cores(tmp_path):
    tasks = {name: task(work, tmp_path / name, name) for name in "abc"}
    cores = len(os.sched_getaffinity(0))
    results = run_parallel(tasks, cores)
    assert {used for _, _, used in results.values()} == {1}


def test_a_failing_task_fails_the_whole(tmp_path):
    with pytest.raises(RuntimeError, match="the student diverged"):
        run_parallel({"bad": task(fail, tmp_path), "good": task(work, tmp_path, "good")}, 1)
