"""Trains one small model from scratch on a recall task, and measures it; resumable."""

import dataclasses
from pathlib import Path

import jax

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import Mixer, ModelConfig, NativeHybrid
from hydrahead_jax.dataclass_json import to_plain
from hydrahead_jax.evals.answers import answer_scores
from hydrahead_jax.local_path import local_path
from hydrahead_jax.precision import training_policy
from hydrahead_jax.resumable import cached
from train.commands.pretrain import Scales, small_scale_params
from train.evidence.recall_task import RecallTask
from train.files.run_folder import open_run, save_model
from train.run.loop import Job, run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Describes one of the compared models: its last layer has this mixer."""

    name: str
    mixer: Mixer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallRun:
    """Holds all that determines one trained and measured model.

    Attributes:
      folder: folder of the run.
      windows: windows that models with slots are measured at, beside their own.
    """

    folder: str
    task: RecallTask
    variant: Variant
    seed: int
    scales: Scales
    windows: tuple[int, ...]

    @property
    def model(self) -> ModelConfig:
        mixers = (*self.task.model.mixers[:-1], self.variant.mixer)
        return dataclasses.replace(self.task.model, mixers=mixers)


def train_and_measure(recall: RecallRun) -> dict:
    """Returns the scores of a model, which it trains unless that is done; see `measure`."""
    folder = local_path(recall.folder)
    params = _train(recall, folder)
    record = {k: v for k, v in to_plain(recall).items() if k != "folder"}
    return cached(folder / "scores.json", record, lambda: measure(recall, params))


def _train(recall: RecallRun, folder: Path) -> dict:
    model = recall.model
    stages = [to_plain(stage) for stage in recall.task.stages]
    record = {"model": model, "stages": stages, "scales": recall.scales, "seed": recall.seed}
    open_run(folder, {k: to_plain(v) for k, v in record.items()})
    save_model(folder, model)
    job = Job(
        folder=folder,
        stages=recall.task.stages,
        model=model,
        initial=lambda: small_scale_params(model, recall.scales, jax.random.key(recall.seed)),
        corpus=None,
        seed=recall.seed,
        policy=training_policy("float32"),
    )
    return run(job).params


def measure(recall: RecallRun, params: dict) -> dict:
    """Returns a model's scores as JSON.

    Returns:
      "scores", {length: {count: scores}}, those of `AnswerScores`; "windows", {window: {count:
      scores}} at the first length, where a model has slots; "parameters", their number;
      "cache_bytes", {length: bytes of a sequence}.
    """
    task, model = recall.task, recall.model

    def scores(model: ModelConfig, length: int) -> dict:
        return {
            str(count): answer_scores(
                model, params, *task.held_out(length, count), batch=task.batch
            )._asdict()
            for count in task.fitting_counts(length)
        }

    first = task.lengths[0]
    windows = recall.windows if reads_slots(recall.variant) else ()
    return {
        "scores": {str(length): scores(model, length) for length in task.lengths},
        "windows": {str(w): scores(_with_window(model, w), first) for w in windows},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "cache_bytes": {str(length): cache_bytes(model, length) for length in task.lengths},
    }


def reads_slots(variant: Variant) -> bool:
    """Returns whether a variant has slots, beside which any window can be set after training."""
    mixer = variant.mixer
    return isinstance(mixer, NativeHybrid) and mixer.window is not None and mixer.slots > 1


def has_window_and_slots(variant: Variant) -> bool:
    """Returns whether a variant has slots and is trained with a window."""
    return reads_slots(variant) and variant.mixer.window > 0


def _with_window(model: ModelConfig, window: int) -> ModelConfig:
    *others, last = model.mixers
    mixers = (*others, dataclasses.replace(last, window=window))
    return dataclasses.replace(model, mixers=mixers)
