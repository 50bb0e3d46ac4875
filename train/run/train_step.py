"""Makes one optimizer step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jmp
import optax

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import abstract_params
from hydrahead_jax.precision import compute_params
from hydrahead_jax.sharding import Layout
from train.data.batches import abstract_batch
from train.files.param_paths import flatten, split, unflatten
from train.losses.model_batch import make_model_batch
from train.losses.objectives import objective_of
from train.losses.shared import whole_counts, with_rms_ratios
from train.run.microbatches import in_parts, sum_over
from train.stage.optimizer import make_optimizer
from train.stage.stage import Stage
from train.teacher.cached_batches import abstract_kept


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Holds what a step changes; parameters are flat dicts keyed by path."""

    trainable: dict[str, jax.Array]
    opt_state: optax.OptState


class Teacher(NamedTuple):
    """Holds a model that is only read; params have the precision that it computes in."""

    config: ModelConfig
    params: dict


def init_state(stage: Stage, params: dict) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state at the first step of a stage, and the parameters that it leaves alone."""
    trainable, frozen = split(flatten(params), stage.trainable)
    if not trainable:
        raise ValueError(f"stage {stage.name!r}: no parameter matches {stage.trainable!r}")
    return TrainState(trainable, make_optimizer(stage.optim, stage.steps).init(trainable)), frozen


def abstract_state(
    stage: Stage, config: ModelConfig, layout: Layout | None = None
) -> tuple[TrainState, dict]:
    """Returns the shapes, dtypes and, with a layout, shardings of `init_state`."""
    return placed(jax.eval_shape(lambda: init_state(stage, abstract_zeros(config))), layout)


def abstract_zeros(config: ModelConfig) -> dict:
    """Returns zeros in the shape of the parameters, to be traced only."""
    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), abstract_params(config))


def abstract_arguments(
    stage: Stage,
    config: ModelConfig,
    teacher_config: ModelConfig | None,
    policy: jmp.Policy,
    layout: Layout | None = None,
) -> tuple:
    """Returns shapes, dtypes and shardings of the arguments of a step; allocates nothing."""
    teacher = None
    if objective_of(stage).targets is not None:
        make = lambda: compute_params(policy, abstract_zeros(teacher_config))
        teacher = placed(jax.eval_shape(make), layout)
    batch = abstract_batch(stage.data)
    if stage.teacher_cache is not None:
        batch = dataclasses.replace(batch, teacher=abstract_kept(stage))
    if layout is not None:
        rows = layout.sharding("BT")
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch)
    return *abstract_state(stage, config, layout), teacher, batch


def placed(tree, layout: Layout | None):
    """Gives abstract parameters or optimizer states the shardings of a layout."""
    if layout is None:
        return tree
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        tree,
        layout.shardings(tree),
    )


@functools.cache
def make_train_step(
    stage: Stage,
    config: ModelConfig,
    teacher_config: ModelConfig | None,
    policy: jmp.Policy,
    layout: Layout | None = None,
) -> Callable:
    """Compiles step(state, frozen, teacher_params, batch) -> (state, metrics); state is donated.

    The teacher runs outside of differentiation; gradients and optimizer state exist only for the
    trainable parameters. Where a gradient is not finite the state stays as it was, and the metric
    "skipped" says so.
    """
    objective = objective_of(stage)
    optimizer = make_optimizer(stage.optim, stage.steps)

    def gradients(trainable, frozen, teacher_params, batch, counts):
        targets = None
        if objective.targets is not None:
            targets = objective.targets(stage, teacher_config, teacher_params, batch, layout)

        def loss(trainable):
            params = compute_params(policy, unflatten(trainable | frozen))
            return objective.loss(stage, config, params, batch, targets, counts, layout)

        grads, metrics = jax.grad(loss, has_aux=True)(trainable)
        if layout is not None:
            grads = jax.lax.with_sharding_constraint(grads, layout.shardings(grads))
        return grads, metrics

    def train_step(state: TrainState, frozen, teacher_params, batch):
        batch = make_model_batch(batch, layout)
        counts = whole_counts(batch)
        grads, metrics = sum_over(
            lambda part: gradients(state.trainable, frozen, teacher_params, part, counts),
            in_parts(batch, stage.microbatches, layout),
        )
        metrics = with_rms_ratios(metrics)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        new = TrainState(optax.apply_updates(state.trainable, updates), opt_state)
        finite = jnp.isfinite(norm)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        metrics["gradient_norm"] = (norm, jnp.ones(()))
        metrics["skipped"] = (1.0 - finite, jnp.ones(()))
        return new, metrics

    if layout is None:
        return jax.jit(train_step, donate_argnums=0)
    where = jax.tree.map(lambda x: x.sharding, abstract_state(stage, config, layout)[0])
    return jax.jit(train_step, donate_argnums=0, out_shardings=(where, layout.sharding("")))
