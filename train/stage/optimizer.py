"""Describes optimizers as data: AdamW, or Muon on matrices with Adam on the rest."""

import dataclasses
from typing import Literal

import optax
from optax.contrib import MuonDimensionNumbers, muon

ScheduleKind = Literal["cosine", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Sets up AdamW and its schedule.

    Attributes:
      learning_rate: learning rate at the peak.
      end_fraction: fraction of the peak that a cosine reaches at the last step.
      schedule: "cosine", or "constant", which stays at the peak.
      warmup_steps: steps of linear warm-up from zero.
      b1: decay of the first moment.
      b2: decay of the second moment.
      weight_decay: decoupled weight decay.
      clip: global norm that gradients are scaled down to.
    """

    learning_rate: float
    end_fraction: float = 0.01
    schedule: ScheduleKind = "cosine"
    warmup_steps: int = 50
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    """Sets up Muon on the matrices of the layers, Adam on everything else; fields as in AdamW."""

    learning_rate: float = 0.02
    adam_learning_rate: float = 3e-3
    end_fraction: float = 0.05
    schedule: ScheduleKind = "cosine"
    warmup_steps: int = 50
    b1: float = 0.9
    b2: float = 0.95
    clip: float = 1.0


Optimizer = AdamW | Muon


def learning_rate(optim: Optimizer, steps: int, peak: float | None = None) -> optax.Schedule:
    """Makes the schedule of a stage of `steps` steps; `peak` is by default the optimizer's rate."""
    peak = optim.learning_rate if peak is None else peak
    ramp = optax.linear_schedule(0.0, peak, optim.warmup_steps)
    if optim.schedule == "constant":
        rest = optax.constant_schedule(peak)
    else:
        left = max(1, steps - optim.warmup_steps)
        rest = optax.cosine_decay_schedule(peak, left, alpha=optim.end_fraction)
    return optax.join_schedules([ramp, rest], [optim.warmup_steps])


def make_optimizer(optim: Optimizer, steps: int) -> optax.GradientTransformation:
    """Makes the gradient transformation over a flat dict of parameters, keyed by path."""
    rate = learning_rate(optim, steps)
    if isinstance(optim, AdamW):
        update = optax.adamw(rate, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay)
    else:
        update = muon(
            rate,
            adam_learning_rate=learning_rate(optim, steps, optim.adam_learning_rate),
            muon_weight_dimension_numbers=lambda params: {
                path: _matrix_axes(path) for path in params
            },
            adam_b1=optim.b1,
            adam_b2=optim.b2,
        )
    return optax.chain(optax.clip_by_global_norm(optim.clip), update)


def _matrix_axes(path: str) -> MuonDimensionNumbers | None:
    """Returns the axes that a projection sums over, by its name; None for other parameters."""
    name, _, dims = path.rpartition("/")[2].rpartition("_")
    if not name.startswith("w_") or "V" in dims:
        return None
    if dims.startswith("D"):
        return MuonDimensionNumbers((0,), tuple(range(1, len(dims))))
    return MuonDimensionNumbers(tuple(range(len(dims) - 1)), (len(dims) - 1,))
