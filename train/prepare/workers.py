"""Starts processes that make shards, and shows their progress."""

import concurrent.futures
import multiprocessing
import os
import signal
from collections.abc import Callable

from hydrahead_jax.errors import UserError
from train.data.documents.parts import Part
from train.data.tokenizer import load_tokenizer
from train.files.child_process import end_with_parent
from train.files.progress import Progress
from train.prepare.job import Job
from train.prepare.shards import make_shards

_SECONDS_BETWEEN_LOOKS = 0.2
_STAGE = "MiB of sources tokenised"
_MIB = 2**20


class _Stopped(Exception):
    """Stops a part because another part failed."""


def cores() -> int:
    """Returns the number of CPU cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_parts(job: Job, parts: dict[int, Part], workers: int, say: Callable[[str], None]) -> None:
    """Makes the shards of all parts in `workers` processes; in this one where that is 1.

    Raises:
      UserError: a part failed; finished shards stay.
    """
    if not parts:
        return
    total = -(-sum(part.bytes for part in parts.values()) // _MIB)
    with Progress(say) as stages:
        show = lambda done: stages(_STAGE, min(int(done / _MIB), total - 1), total)
        (_run_here if workers == 1 else _run_in_processes)(job, parts, workers, show)
        stages(_STAGE, total, total)


def _run_here(
    job: Job, parts: dict[int, Part], workers: int, show: Callable[[float], None]
) -> None:
    tokenizer = load_tokenizer(job.tokenizer)
    finished = 0
    for number, part in parts.items():
        advance = lambda done, part=part, before=finished: show(before + done * part.bytes)
        make_shards(job, tokenizer, number, part, advance)
        finished += part.bytes
        show(finished)


def _run_in_processes(
    job: Job, parts: dict[int, Part], workers: int, show: Callable[[float], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    shares = context.Array("d", max(parts) + 1)
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (job, shares, stop))
    try:
        futures = {pool.submit(_make, number, part) for number, part in parts.items()}
        while futures:
            done, futures = concurrent.futures.wait(
                futures, _SECONDS_BETWEEN_LOOKS, concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                future.result()
            show(sum(shares[number] * part.bytes for number, part in parts.items()))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker was killed, most likely for lack of memory; run the command again with "
            "fewer --workers"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _start(job: Job, shares, stop) -> None:
    """Prepares this process for parts; it ends when the process that started it ends."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_with_parent()
    _worker = (job, load_tokenizer(job.tokenizer), shares, stop)


def _make(number: int, part: Part) -> None:
    job, tokenizer, shares, stop = _worker

    def advance(done: float) -> None:
        shares[number] = done
        if stop.is_set():
            raise _Stopped

    make_shards(job, tokenizer, number, part, advance)
    shares[number] = 1.0
