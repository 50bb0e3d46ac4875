import multiprocessing
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


def write_for_a_minute(path):
    for _ in range(600):
        with path.open("a") as file:
            file.write("x")
        time.sleep(0.1)


def test_no_process_outlives_a_command_that_is_killed(tmp_path):
    written = tmp_path / "written"
    tasks = {"a": task(write_for_a_minute, tmp_path, written)}
    command = multiprocessing.get_context("spawn").Process(target=run_parallel, args=(tasks, 1))
    command.start()
    within(30, written.is_file)
    command.kill()

    def is_left_alone() -> bool:
        size = written.stat().st_size
        time.sleep(0.5)
        return written.stat().st_size == size

    within(10, is_left_alone)


def within(seconds: float, holds) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_failing_task_fails_the_whole(tmp_path):
    with pytest.raises(RuntimeError, match="the student diverged"):
        run_parallel({"bad": task(fail, tmp_path), "good": task(work, tmp_path, "good")}, 1)
