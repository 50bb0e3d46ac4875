"""Runs `python -m train cache-teacher`: the teacher goes over the data of a stage, once."""

import collections
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from array_record.python.array_record_module import ArrayRecordWriter

from hydrahead_jax.context.order import from_order
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import read_config
from hydrahead_jax.local_path import local_path
from hydrahead_jax.models import merge
from hydrahead_jax.precision import compute_params, training_policy
from hydrahead_jax.sharding import Layout, make_layout
from hydrahead_jax.vocabulary import Kept, top_tokens
from train import distributed
from train.commands.transfer import TransferConfig
from train.data.batches import Batch, make_batches
from train.data.text import load_corpus
from train.files.progress import Progress
from train.losses.model_batch import make_model_batch
from train.losses.objectives import VOCABULARY_AT_ONCE
from train.losses.shared import unembedding
from train.stage.mesh_checks import check_mesh
from train.stage.stage import Stage, check_stages, stage_seed
from train.teacher.cache_folder import (
    Block,
    CacheFolder,
    Part,
    identity,
    open_for_writing,
    part_name,
    write_block,
)
from train.teacher.cache_record import row_checksums
from train.teacher.cache_writers import local_values, rows_of_writers, whole_rows
from train.teacher.loaded import LoadedTeacher

_BLOCK_BYTES = 2**28
_IN_FLIGHT = 2
_BARRIER_SECONDS = 600.0


def cache_teacher(config: TransferConfig, say: Callable[[str], None] = print) -> None:
    """Writes the caches that the stages of a transfer name; existing parts are left alone.

    Raises:
      UserError: no stage names a cache, or the inputs are not right.
    """
    stages = [stage for stage in config.stages if stage.teacher_cache is not None]
    if not stages:
        raise UserError(
            "no stage has a teacher_cache; set teacher_cache=TeacherCache(folder=...) on the "
            "stage that distills"
        )
    teacher_folder = local_path(config.teacher)
    teacher_config = read_config(teacher_folder)
    check_stages(config.stages, teacher_config.max_length, hybrid=True)
    mesh = stages[0].mesh or config.mesh
    for stage in stages:
        check_mesh(stage, mesh, len(jax.devices()), teacher_config, teacher_config)
        if stage.teacher_cache.tokens > teacher_config.vocab:
            raise UserError(
                f"stage {stage.name!r}: teacher_cache.tokens={stage.teacher_cache.tokens} must be "
                f"at most the teacher's vocabulary of {teacher_config.vocab}"
            )
    corpus = load_corpus(teacher_folder / "tokenizer.json", teacher_config)
    layout = make_layout(mesh)
    loaded = LoadedTeacher(teacher_folder, layout)
    wanted = {
        stage.name: identity(stage, config.seed, teacher_config, loaded.checksum)
        for stage in stages
    }
    params = compute_params(training_policy(config.precision), loaded.take())
    for stage in stages:
        path = local_path(stage.teacher_cache.folder)
        make = functools.partial(open_for_writing, path, wanted[stage.name])
        distributed.agree("cache", make)
        rows = tuple(range(stage.data.batch))
        if layout is not None:
            rows = layout.local_rows(stage.data.batch)
        batches = make_batches(stage.data, corpus, stage_seed(config.seed, stage.name), rows)
        top = _top_tokens(stage, teacher_config, layout)
        writer = _Writer(stage, CacheFolder(path, wanted[stage.name]), layout, batches, rows)
        writer.run(functools.partial(top, params), say)


def _top_tokens(stage: Stage, config, layout: Layout | None) -> Callable:
    """Compiles (params, batch) -> Kept: the teacher's most probable tokens.

    Tokens are in natural order, and the arrays have the dtypes that the cache stores.
    """

    def run(params, batch: Batch) -> Kept:
        made = make_model_batch(batch, layout)
        model = merge(config, params)
        hidden_BTD = model(
            made.tokens_BT,
            segment_ids_BT=made.segment_ids_BT,
            positions_BT=made.positions_BT,
            starts_BT=made.starts_BT,
            training=True,
            layout=layout,
        ).hidden_BTD
        kept = top_tokens(
            hidden_BTD,
            unembedding(model),
            stage.teacher_cache.tokens,
            at_once=VOCABULARY_AT_ONCE,
            layout=layout,
        )
        real_BT = made.segment_ids_BT != 0
        clean = lambda x: jnp.where(real_BT.reshape(*real_BT.shape, *[1] * (x.ndim - 2)), x, 0)
        kept = jax.tree.map(clean, kept._replace(log_p_XK=kept.log_p_XK.astype(jnp.float16)))
        if layout is None:
            return kept
        return jax.tree.map(lambda x: from_order(x, layout.size("context"), layout.order), kept)

    where = None if layout is None else whole_rows(layout)
    return jax.jit(run, out_shardings=where)


class _Pending(NamedTuple):
    """Holds a step that was given to the devices, and checksums of this process' rows."""

    kept: Kept
    checksums: dict[int, int]


class _Writer:
    """Writes the steps that a cache lacks, a block of steps at a time."""

    def __init__(self, stage: Stage, folder: CacheFolder, layout: Layout | None, batches, rows):
        self._stage, self._folder, self._layout = stage, folder, layout
        self._batches, self._rows = batches, rows
        self._writers = rows_of_writers(layout, stage.data.batch)
        batch_bytes = folder.format.bytes * stage.data.batch
        self._block_steps = max(1, _BLOCK_BYTES // batch_bytes)
        if folder.blocks:
            batches.set_state(folder.blocks[-1].state)

    def run(self, top: Callable[[Batch], Kept], say: Callable[[str], None]) -> None:
        """Writes all steps up to the last one of the stage."""
        steps, path = self._stage.steps, self._folder.path
        if self._folder.steps >= steps:
            say(f"{path} has all {steps} steps; nothing to do")
            return
        if self._folder.steps:
            say(f"continuing {path} after step {self._folder.steps} of {steps}")
        with Progress(say) as progress:
            for first in range(self._folder.steps, steps, self._block_steps):
                last = min(first + self._block_steps, steps)
                self._write_block(first, last, top, progress)
        say(f"{path} has all {steps} steps")

    def _write_block(self, first: int, last: int, top, progress) -> None:
        process = distributed.index()
        rows = self._writers.get(process, ())
        name, path = part_name(first, process), self._folder.path
        partial = path / f"{name}.partial"
        with _writing(path):
            writer = ArrayRecordWriter(str(partial), "group_size:1,zstd:1") if rows else None
        pending: collections.deque[_Pending] = collections.deque()
        for step in range(first, last):
            pending.append(self._start(top))
            if len(pending) == _IN_FLIGHT or step == last - 1:
                self._finish(pending, writer, rows, 0 if step == last - 1 else 1)
            progress(f"teacher cache {self._stage.name}", step + 1, self._stage.steps)
        if writer is not None:
            with _writing(path):
                writer.close()
                partial.replace(path / name)
        distributed.barrier(f"cache at step {last}", _BARRIER_SECONDS)
        if distributed.is_first():
            with _writing(path):
                self._record(first, last)
        distributed.barrier(f"record of the cache at step {last}", _BARRIER_SECONDS)

    def _start(self, top) -> _Pending:
        batch = next(self._batches)
        checksums = dict(zip(self._rows, row_checksums(batch), strict=True))
        if self._layout is not None:
            batch = self._layout.place_batch(batch, self._stage.data.batch)
        return _Pending(top(batch), checksums)

    def _finish(self, pending, writer, rows, left: int) -> None:
        """Writes all but `left` of the pending steps."""
        while len(pending) > left:
            kept, checksums = pending.popleft()
            if writer is None:
                jax.block_until_ready(kept)
                continue
            values = [local_values(x, rows) for x in kept]
            with _writing(self._folder.path):
                for row, *arrays in zip(rows, *values, strict=True):
                    writer.write(self._folder.format.encode(*arrays, checksums[row]))

    def _record(self, first: int, last: int) -> None:
        path, parts = self._folder.path, []
        for process, rows in self._writers.items():
            name = part_name(first, process)
            parts.append(Part(name=name, rows=rows, bytes=(path / name).stat().st_size))
        state = self._batches.get_state()
        write_block(path, Block(first=first, steps=last - first, parts=tuple(parts), state=state))


@contextlib.contextmanager
def _writing(path: Path):
    """Raises UserError, which names the path, where a file cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot write to {path}: {error}; free space or choose another folder, and run the "
            "command again"
        ) from error
