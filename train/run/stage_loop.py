"""Runs the training loop of one stage."""

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jmp

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.sharding import Layout
from train import distributed
from train.data.batches import Batch, make_batches
from train.data.text import Corpus
from train.files.progress import Progress
from train.run.checkpoint import CheckpointStore
from train.run.disk import write_failed
from train.run.metrics import MetricsLog, averages
from train.run.nonfinite_steps import Skipped
from train.run.prefetch import Prefetch
from train.run.settings import RunSettings
from train.run.throughput import Throughput, real_tokens
from train.run.train_step import Teacher, TrainState, make_train_step
from train.stage.optimizer import learning_rate
from train.stage.stage import Stage, stage_seed
from train.teacher.cached_batches import CachedBatches

_IN_FLIGHT = 2  # unfinished steps on the devices when the next one is started


class Position(NamedTuple):
    """Says where a stage stands between two steps.

    Attributes:
      state: state that the next step changes.
      frozen: parameters that the stage leaves alone.
      done: finished steps of the stage.
      data: position in the data; None at the stage's start.
    """

    state: TrainState
    frozen: dict
    done: int
    data: dict | None


class _Step(NamedTuple):
    """Holds a step that was given to the devices.

    Attributes:
      done: its number in the stage, from 1.
      metrics: metrics that the devices compute.
      tokens: tokens of its batch that are not padding.
      batch: this process' rows.
      waited: seconds spent waiting for the batch.
    """

    done: int
    metrics: dict
    tokens: Any
    batch: Batch
    waited: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageLoop:
    """Trains one stage; attributes not named here are as in `train.run.loop.Job`.

    Attributes:
      stage: the stage.
      first: steps of the run before the stage.
      layout: layout of the stage's arrays; None on one device.
      teacher: None where the stage needs none.
    """

    stage: Stage
    first: int
    layout: Layout | None
    model: ModelConfig
    teacher: Teacher | None
    policy: jmp.Policy
    corpus: Corpus | None
    seed: int
    folder: Path
    running: RunSettings
    say: Callable[[str], None]

    def run(
        self, start: Position, store: CheckpointStore, log: MetricsLog, gate: distributed.Gate
    ) -> tuple[TrainState, dict]:
        """Runs the steps up to the end of the stage; raises as `train.run.loop.run`."""
        prefetch = Prefetch(self._batches(start.data), self._place)
        try:
            with Progress(self.say) as progress:
                reader = _Reader(self, progress, store, log)
                return self._steps(start, store, gate, prefetch, reader)
        finally:
            prefetch.close()

    def _steps(self, start: Position, store, gate, prefetch, reader) -> tuple[TrainState, dict]:
        stage, (state, frozen, done, _) = self.stage, start
        teacher = self.teacher
        step_fn = make_train_step(
            stage, self.model, teacher.config if teacher else None, self.policy, self.layout
        )
        position, is_saved = start.data, True
        for done in range(start.done + 1, stage.steps + 1):
            is_compiled = done > start.done + 1
            distributed.progress(
                self.first + done, self.running.step_timeout if is_compiled else None
            )
            if not gate.opens_for(self.first + done):
                reader.drain()
                if not is_saved:
                    store.save(self.first + done - 1, state, frozen, position)
                store.wait()
                raise distributed.Stopped(
                    f"stopped by a signal after step {self.first + done - 1}, stage {stage.name!r};"
                    f" everything is saved in {self.folder}, and the same command continues from "
                    "there"
                )
            store.check()
            (batch, placed, position), waited = prefetch.next()
            tokens = real_tokens(placed)
            state, metrics = step_fn(state, frozen, teacher.params if teacher else None, placed)
            reader.add(_Step(done, metrics, tokens, batch, waited))
            is_saved = stage.ends_interval(done)
            if is_saved:
                reader.drain()
                distributed.progress(self.first + done, None)
                store.save(self.first + done, state, frozen, position)
                if stage.checkpoint_every == 1:
                    store.wait()
        store.wait()
        return state, frozen

    def rows(self) -> tuple[int, ...]:
        """Returns the rows of every batch that this process makes."""
        batch = self.stage.data.batch
        return tuple(range(batch)) if self.layout is None else self.layout.local_rows(batch)

    def _batches(self, position: dict | None):
        seed = stage_seed(self.seed, self.stage.name)
        batches = make_batches(self.stage.data, self.corpus, seed, self.rows())
        if self.stage.teacher_cache is not None:
            batches = CachedBatches(batches, self.stage, self.rows())
        if position is not None:
            batches.set_state(position)
        return batches

    def _place(self, batch: Batch) -> Batch:
        if self.layout is None:
            return batch
        return self.layout.place_batch(batch, self.stage.data.batch)


class _Reader:
    """Reads the metrics of finished steps while the devices work on the next ones."""

    def __init__(
        self, loop: StageLoop, progress: Progress, store: CheckpointStore, log: MetricsLog
    ):
        stage, self._loop, self._store, self._log = loop.stage, loop, store, log
        self._steps: collections.deque[_Step] = collections.deque()
        self._window: list[dict] = []
        self._rate = learning_rate(stage.optim, stage.steps)
        self._rows = loop.rows()
        self._skipped = Skipped(loop.folder, stage.name, loop.running.max_skipped, loop.say)
        teacher_config = loop.teacher.config if loop.teacher else None
        self._throughput = Throughput(stage, loop.model, teacher_config, loop.layout)
        self._progress = progress

    def add(self, step: _Step) -> None:
        self._steps.append(step)
        while len(self._steps) > _IN_FLIGHT:
            self._read(self._steps.popleft())

    def drain(self) -> None:
        while self._steps:
            self._read(self._steps.popleft())

    def _read(self, step: _Step) -> None:
        stage = self._loop.stage
        metrics, tokens = jax.device_get((step.metrics, step.tokens))
        self._throughput.step(float(tokens), step.waited)
        loss = None
        try:
            if self._skipped.note(step.done, metrics, step.batch, self._rows):
                self._window.append(metrics)
            if step.done % stage.log_every == 0 or stage.ends_interval(step.done):
                loss = self._write(step.done)
        except OSError as error:
            raise write_failed(
                "metrics", self._loop.folder, error, self._store.settled()
            ) from error
        note = None if loss is None else f"loss {loss:.4f}"
        self._progress(stage.name, step.done, stage.steps, note)

    def _write(self, done: int) -> float | None:
        means = averages(self._window)
        more = {"learning_rate": float(self._rate(done - 1)), "skipped": self._skipped.total}
        values = means | more | self._throughput.take()
        self._log.write(self._loop.first + done, self._loop.stage.name, values)
        self._window.clear()
        return means.get("loss")
