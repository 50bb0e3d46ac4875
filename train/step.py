"""One optimizer step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jmp
import optax

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import abstract_params
from hydrahead_jax.precision import compute_params
from train.losses import OBJECTIVES
from train.optim import make_optimizer
from train.paths import flatten, split, unflatten
from train.stage import Stage


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes; parameters are flat dicts keyed by path."""

    trainable: dict[str, jax.Array]
    opt_state: optax.OptState


class Teacher(NamedTuple):
    """A model that is only read; params in the precision that it computes in."""

    config: ModelConfig
    params: dict


def init_state(stage: Stage, params: dict) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state at the first step of a stage, and the parameters that it leaves alone."""
    trainable, frozen = split(flatten(params), stage.trainable)
    if not trainable:
        raise ValueError(f"stage {stage.name!r}: no parameter matches {stage.trainable!r}")
    return TrainState(trainable, make_optimizer(stage.optim, stage.steps).init(trainable)), frozen


def abstract_state(stage: Stage, config: ModelConfig) -> tuple[TrainState, dict]:
    """Shapes and dtypes of `init_state`."""
    return jax.eval_shape(lambda: init_state(stage, abstract_zeros(config)))


def abstract_zeros(config: ModelConfig) -> dict:
    """Zeros in the shape of the parameters, to be traced only."""
    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), abstract_params(config))


@functools.cache
def make_train_step(
    stage: Stage, config: ModelConfig, teacher_config: ModelConfig | None, policy: jmp.Policy
) -> Callable:
    """step(state, frozen, teacher_params, batch) -> (state, metrics), compiled; state is donated.

    The teacher runs outside of differentiation; gradients and optimizer state exist only for the
    trainable parameters.
    """
    objective = OBJECTIVES[stage.loss]
    optimizer = make_optimizer(stage.optim, stage.steps)

    def train_step(state: TrainState, frozen, teacher_params, batch):
        targets = None
        if objective.targets is not None:
            targets = objective.targets(teacher_config, teacher_params, batch)

        def loss(trainable):
            params = compute_params(policy, unflatten(trainable | frozen))
            return objective.loss(stage, config, params, batch, targets)

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.trainable)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics["gradient_norm"] = (optax.tree.norm(grads), 1.0)
        return TrainState(trainable, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)
