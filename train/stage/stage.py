"""Describes a training stage as data: the loss, the trained parameters, the text, the settings."""

import dataclasses
from typing import Literal

import numpy as np

from hydrahead_jax.dataclass_json import RECORDED_IF_SET
from hydrahead_jax.errors import UserError
from hydrahead_jax.models import Remat
from hydrahead_jax.sharding import MeshConfig
from train.data.batches import DataConfig, check_data
from train.stage.optimizer import Optimizer
from train.stage.teacher_cache import TeacherCache

EVERYTHING = ".*"
MIXERS = r"layers/\d+/mixer/.*"
ALL_BUT_MLP = r"(?!layers/\d+/mlp/).*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Describes one stage of training: its loss, its data, and how it is run.

    Attributes:
      name: name in the log and on the command line.
      loss: "next_token"; "align" and "distill" need a teacher.
      steps: steps of the optimizer.
      data: what it trains on.
      optim: optimizer and schedule, started anew.
      trainable: regular expression that matches the paths of the trained parameters.
      ce_weight: weight of next-token cross entropy beside the distillation loss.
      slots_weight: weight of -log(sigma), the slots' share of the softmax in native hybrid
        attention, averaged over heads and tokens; it keeps slots from being ignored.
      teacher_cache: cache that is read in place of running the teacher; for "distill".
      mesh: mesh of devices; None is the run's.
      microbatches: parts of a batch whose gradients are added up, one after the other; the step is
        the same, in less memory.
      remat: what is saved for the backward pass. "none": all activations; "kernels": only what
        kernels save; "full": only each layer's input.
      scan_layers: whether consecutive layers of equal structure are compiled once, as a loop.
      log_every: steps between lines of metrics.jsonl.
      checkpoint_every: the most steps a kill can lose. Checkpoints start every
        `checkpoint_every // 2` steps and are written in the background; the last step has one.
    """

    name: str
    loss: Literal["next_token", "align", "distill"]
    steps: int
    data: DataConfig
    optim: Optimizer
    trainable: str = EVERYTHING
    ce_weight: float = 0.0
    slots_weight: float = dataclasses.field(default=0.0, metadata=RECORDED_IF_SET)
    teacher_cache: TeacherCache | None = None
    mesh: MeshConfig | None = None
    microbatches: int = 1
    remat: Remat = "none"
    scan_layers: bool = False
    log_every: int = 10
    checkpoint_every: int = 100

    def ends_interval(self, step: int) -> bool:
        """Returns whether a checkpoint is made after so many steps of the stage."""
        return step == self.steps or step % max(1, self.checkpoint_every // 2) == 0


def check_stages(stages: tuple[Stage, ...], max_length: int, *, hybrid: bool = False) -> None:
    """Raises UserError where a stage cannot be run.

    Args:
      max_length: the longest sequence of the model, or of the teacher of a hybrid.
      hybrid: whether rows may be longer in stages without a teacher, because hybrids are made for
        long context.
    """
    names = [stage.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise UserError(f"stages need different names, and there must be one; got {names}")
    for stage in stages:
        where = f"stage {stage.name!r}"
        if min(stage.steps, stage.log_every, stage.checkpoint_every, stage.microbatches) < 1:
            raise UserError(
                f"{where}: steps, log_every, checkpoint_every and microbatches must be 1 or more"
            )
        may_be_longer = hybrid and stage.loss == "next_token"
        if stage.data.length > max_length and not may_be_longer:
            raise UserError(
                f"{where}: rows of {stage.data.length} tokens are longer than the {max_length} "
                f"that the model allows; shorten data.length"
            )
        if stage.slots_weight < 0 or (stage.slots_weight and stage.loss == "align"):
            raise UserError(
                f"{where}: slots_weight={stage.slots_weight} must be 0 or more, and 0 with "
                "loss='align'"
            )
        cache = stage.teacher_cache
        if cache is not None and (stage.loss != "distill" or cache.tokens < 1):
            raise UserError(
                f"{where}: a teacher_cache needs loss='distill' and keeps 1 token or more"
            )
        check_data(stage.data, where)


def stage_seed(seed: int, name: str) -> int:
    """Returns the seed for the order of a stage's data, from the seed of the run."""
    words = np.random.SeedSequence([seed, *name.encode()]).generate_state(1)
    return int(words[0]) & 0x7FFFFFFF
