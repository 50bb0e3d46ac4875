"""The training loop: one for pretraining and for every stage of the transfer."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import jmp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.models import abstract_params
from hydrahead_jax.sharding import MeshConfig
from train.checkpoint import CheckpointStore, Saved
from train.data import make_batches
from train.metrics import MetricsLog, ProgressLine, averages, is_finite
from train.optim import learning_rate
from train.paths import unflatten
from train.run_folder import CHECKPOINTS, FINISHED, METRICS, write_json
from train.stage import Stage
from train.step import Teacher, TrainState, abstract_state, init_state, make_train_step
from train.text import Corpus


class Diverged(UserError):
    """A metric is not finite; the last checkpoint is from before that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """All that determines the outcome of a run, and where it goes.

    Attributes:
      folder: of the run.
      stages: in order; each starts with the parameters of the one before.
      model: that is trained.
      initial: makes the parameters that the first stage starts with.
      teacher: makes the teacher; None where no stage needs one.
      teacher_config: of that teacher.
      corpus: all text.
      seed: of the order of the data.
      policy: precisions.
      mesh: of devices, for stages that name none.
      say: takes a sentence for the user.
    """

    folder: Path
    stages: tuple[Stage, ...]
    model: ModelConfig
    initial: Callable[[], dict]
    corpus: Corpus
    seed: int
    policy: jmp.Policy
    mesh: MeshConfig = MeshConfig()
    teacher: Callable[[], Teacher] | None = None
    say: Callable[[str], None] = print

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, int]:
        """(stage, its first step) that the last of `step` steps belongs to."""
        first = 0
        for index, stage in enumerate(self.stages):
            if step <= first + stage.steps:
                return index, first
            first += stage.steps
        raise ValueError(f"the run has {first} steps, not {step}")


class Result(NamedTuple):
    """was_finished: nothing was left to do."""

    params: dict
    was_finished: bool


def run(job: Job) -> Result:
    """Runs what is left of a job; bitwise the same parameters however often it was killed.

    Raises:
      Diverged: a metric is not finite.
    """
    store = CheckpointStore(job.folder / CHECKPOINTS)
    try:
        result = _run(job, store)
    finally:
        store.close()
    write_json(job.folder / FINISHED, {"steps": job.steps})
    return result


def _run(job: Job, store: CheckpointStore) -> Result:
    saved = restore(job, store)
    step = 0 if saved is None else saved.step
    if step == job.steps:
        return Result(_params(saved.state, saved.frozen), True)
    if saved is not None:
        job.say(f"resuming {job.folder} at step {step} of {job.steps}")
    params = job.initial() if saved is None else _params(saved.state, saved.frozen)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, abstract_params(job.model))
    teacher = job.teacher() if job.teacher is not None else None
    log = MetricsLog(job.folder, METRICS, step)
    try:
        index, first = job.stage_at(step)
        if saved is not None and step == first + job.stages[index].steps:
            saved, index, first = None, index + 1, step
        for stage in job.stages[index:]:
            params = _run_stage(job, stage, first, params, saved, teacher, store, log)
            saved, first = None, first + stage.steps
    finally:
        log.close()
    return Result(params, False)


def restore(job: Job, store: CheckpointStore) -> Saved | None:
    """The newest whole checkpoint of the job."""

    def abstract(step: int):
        return abstract_state(job.stages[job.stage_at(step)[0]], job.model)

    return store.restore_newest(abstract, job.say)


def _run_stage(
    job: Job,
    stage: Stage,
    first: int,
    params: dict,
    saved: Saved | None,
    teacher: Teacher | None,
    store: CheckpointStore,
    log: MetricsLog,
) -> dict:
    """From `saved`, or from the stage's start, to its end; `first` steps lie before the stage."""
    batches = make_batches(stage.data, job.corpus, _stage_seed(job.seed, stage.name))
    if saved is None:
        start = 0
        state, frozen = init_state(stage, jax.tree.map(jnp.copy, params))
        # As restored arrays are, so that a resumed process compiles the same program.
        state, frozen = jax.device_put((state, frozen), jax.devices()[0])
    else:
        state, frozen, start = saved.state, saved.frozen, saved.step - first
        batches.set_state(saved.data)
    step_fn = make_train_step(stage, job.model, teacher.config if teacher else None, job.policy)
    rate = learning_rate(stage.optim, stage.steps)
    progress = ProgressLine(stage.name, start, stage.steps, job.say)
    window, since = [], time.monotonic()
    try:
        for done in range(start + 1, stage.steps + 1):
            teacher_params = teacher.params if teacher else None
            state, metrics = step_fn(state, frozen, teacher_params, next(batches))
            window.append(metrics)
            at_end = done == stage.steps
            loss = None
            must_save = at_end or done % stage.checkpoint_every == 0
            if must_save or done % stage.log_every == 0:
                means = averages(window)
                seconds = (time.monotonic() - since) / len(window)
                if not is_finite(means):
                    raise Diverged(_diverged(stage, done, means))
                values = {"learning_rate": float(rate(done - 1)), "seconds_per_step": seconds}
                log.write(first + done, stage.name, means | values)
                window, since, loss = [], time.monotonic(), means.get("loss")
            if must_save:
                store.save(first + done, state, frozen, batches.get_state())
            progress.advance(done, loss)
        store.wait()
    finally:
        progress.close()
    return _params(state, frozen)


def _params(state: TrainState, frozen: dict) -> dict:
    return unflatten(state.trainable | frozen)


def _stage_seed(seed: int, name: str) -> int:
    words = np.random.SeedSequence([seed, *name.encode()]).generate_state(1)
    return int(words[0]) & 0x7FFFFFFF


def _diverged(stage: Stage, step: int, means: dict[str, float]) -> str:
    bad = [name for name, value in means.items() if not np.isfinite(value)]
    return (
        f"stage {stage.name!r} diverged by step {step}: {', '.join(bad)} not finite; the last "
        f"checkpoint is kept, so lower optim.learning_rate and start a new run"
    )
