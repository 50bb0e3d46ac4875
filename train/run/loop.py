"""Runs the stages of a run one after another, from wherever the last process stopped."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import jmp

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import abstract_params
from hydrahead_jax.sharding import Layout, MeshConfig, make_layout
from train import distributed
from train.data.text import Corpus
from train.files.param_paths import unflatten
from train.files.run_folder import CHECKPOINTS, FINISHED, METRICS, write_json
from train.losses.objectives import objective_of
from train.run.checkpoint import CheckpointStore, Saved
from train.run.disk import check_space, tree_bytes
from train.run.metrics import MetricsLog, check_wandb
from train.run.nonfinite_steps import Diverged as Diverged
from train.run.settings import RunSettings
from train.run.stage_loop import Position, StageLoop
from train.run.train_step import Teacher, abstract_state, init_state
from train.stage.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Holds all that determines the outcome of a run, and where the outcome is written.

    Attributes:
      folder: folder of the run.
      stages: stages in order; each starts with the parameters of the one before.
      model: config of the model that is trained.
      initial: makes the parameters that the first stage starts with.
      corpus: all text; None where no stage reads any.
      seed: seed of the order of the data.
      policy: precisions of the computation.
      mesh: mesh of devices, for stages that name none.
      running: how the run is kept going.
      teacher: loads the teacher; None where no stage needs one.
      release: frees the teacher's memory; called once no remaining stage needs a teacher.
      say: takes a sentence for the user.
    """

    folder: Path
    stages: tuple[Stage, ...]
    model: ModelConfig
    initial: Callable[[], dict]
    corpus: Corpus | None
    seed: int
    policy: jmp.Policy
    mesh: MeshConfig = MeshConfig()
    running: RunSettings = RunSettings()
    teacher: Callable[[], Teacher] | None = None
    release: Callable[[], object] | None = None
    say: Callable[[str], None] = print

    @property
    def steps(self) -> int:
        """Returns the steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def layout(self, stage: Stage) -> Layout | None:
        """Returns the layout of a stage's arrays; None on one device."""
        return make_layout(stage.mesh or self.mesh)

    def stage_at(self, step: int) -> tuple[int, int]:
        """Returns the stage that the last of `step` steps belongs to, and its first step."""
        first = 0
        for index, stage in enumerate(self.stages):
            if step <= first + stage.steps:
                return index, first
            first += stage.steps
        raise ValueError(f"the run has {first} steps, not {step}")


class Result(NamedTuple):
    """Holds the outcome of a run.

    Attributes:
      params: the trained parameters.
      was_finished: whether nothing was left to do.
    """

    params: dict
    was_finished: bool


def run(job: Job) -> Result:
    """Runs the rest of a job; the parameters are bitwise the same however often it was killed.

    Raises:
      Diverged: too many steps in a row were not finite.
      WriteFailed: the disk is full or cannot be written.
      Stopped: a signal asked for it; everything is saved.
    """
    check_wandb(job.running.wandb)
    store = CheckpointStore(job.folder / CHECKPOINTS, job.running.keep_checkpoints)
    gate = distributed.Gate()
    try:
        with gate.signals(), distributed.watched(gate, job.running.peer_timeout):
            result = _run(job, store, gate)
    finally:
        store.close()
    write_json(job.folder / FINISHED, {"steps": job.steps})
    return result


def _run(job: Job, store: CheckpointStore, gate: distributed.Gate) -> Result:
    saved = restore(job, store)
    step = 0 if saved is None else saved.step
    if step == job.steps:
        return Result(_params(saved.state, saved.frozen), True)
    _check_disk(job)
    if saved is not None:
        job.say(f"resuming {job.folder} at step {step} of {job.steps}")
    index, first = job.stage_at(step)
    params = None
    if saved is None:
        params = job.initial()
        chex.assert_trees_all_equal_shapes_and_dtypes(params, abstract_params(job.model))
    elif step == first + job.stages[index].steps:
        params, saved = _params(saved.state, saved.frozen), None
        index, first = index + 1, step
    needs_teacher = [objective_of(stage).targets is not None for stage in job.stages]
    teacher = job.teacher() if any(needs_teacher[index:]) else None
    if teacher is None and job.release is not None:
        job.release()
    log = MetricsLog(job.folder, METRICS, step, job.running.wandb)
    try:
        for number, stage in enumerate(job.stages[index:], index):
            layout = job.layout(stage)
            if not any(needs_teacher[number:]):
                teacher = None
            if teacher is not None:
                teacher = Teacher(teacher.config, reshard(teacher.params, layout))
            if saved is None:
                position = _begin(job, stage, layout, params)
            else:
                position = Position(saved.state, saved.frozen, saved.step - first, saved.data)
            params = saved = None
            loop = StageLoop(
                stage=stage,
                first=first,
                layout=layout,
                model=job.model,
                teacher=teacher if needs_teacher[number] else None,
                policy=job.policy,
                corpus=job.corpus,
                seed=job.seed,
                folder=job.folder,
                running=job.running,
                say=job.say,
            )
            state, frozen = loop.run(position, store, log, gate)
            params, first = _params(state, frozen), first + stage.steps
    finally:
        log.close()
    return Result(params, False)


def restore(job: Job, store: CheckpointStore) -> Saved | None:
    """Restores the newest complete checkpoint of the job, on the layout of its stage."""

    def abstract(step: int):
        stage = job.stages[job.stage_at(step)[0]]
        return abstract_state(stage, job.model, job.layout(stage))

    return store.restore_newest(abstract, job.say)


def reshard(tree, layout: Layout | None):
    """Moves parameters to the layout of another stage."""
    if layout is None:
        return jax.device_put(tree, jax.local_devices()[0])
    return jax.device_put(tree, layout.shardings(tree))


def _begin(job: Job, stage: Stage, layout: Layout | None, params: dict) -> Position:
    """Returns the position at the start of a stage; nothing of `params` is donated."""
    params = reshard(params, layout)
    if layout is None:
        state, frozen = init_state(stage, jax.tree.map(jnp.copy, params))
        # Placed as restored arrays are, so that a resumed process compiles the same program.
        return Position(*jax.device_put((state, frozen), jax.devices()[0]), 0, None)
    where = jax.tree.map(lambda x: x.sharding, abstract_state(stage, job.model, layout))
    start = lambda params: init_state(stage, jax.tree.map(jnp.copy, params))
    return Position(*jax.jit(start, out_shardings=where)(params), 0, None)


def _check_disk(job: Job) -> None:
    """Raises UserError where checkpoints have no room."""
    largest = max(tree_bytes(abstract_state(stage, job.model)) for stage in job.stages)

    def check() -> None:
        check_space(job.folder, largest, job.running.keep_checkpoints, job.say)

    distributed.agree("disk", check)


def _params(state, frozen: dict) -> dict:
    return unflatten(state.trainable | frozen)
