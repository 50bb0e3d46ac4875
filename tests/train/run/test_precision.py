"""Checks float32 masters with bfloat16 computation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.models import init_params
from hydrahead_jax.precision import compute_params, training_policy
from tests.train import small
from train.data.batches import Batch
from train.data.text import TextSource
from train.files.param_paths import flatten
from train.run.train_step import init_state, make_train_step
from train.stage.stage import MIXERS


def test_policies():
    assert training_policy("auto").compute_dtype == jnp.float32  # the tests run on CPU
    params = init_params(small.STUDENT, jax.random.key(0))
    cast = flatten(compute_params(training_policy("bfloat16"), params))
    for path, leaf in cast.items():
        kept = path.endswith(("a_log_N", "dt_bias_N", "gamma_N"))
        assert leaf.dtype == (jnp.float32 if kept else jnp.bfloat16), path


def test_step_in_bfloat16_keeps_float32_masters():
    stage = small.stages(TextSource())[0]
    stage = dataclasses.replace(stage, trainable=MIXERS)
    policy = training_policy("bfloat16")
    params = init_params(small.STUDENT, jax.random.key(0))
    teacher = compute_params(policy, init_params(small.TEACHER, jax.random.key(1)))
    state, frozen = init_state(stage, params)
    tokens = np.arange(48, dtype=np.int32).reshape(2, 24)
    ones = np.ones_like(tokens)
    batch = Batch(tokens, ones, ones.astype(np.float32))
    step = make_train_step(stage, small.STUDENT, small.TEACHER, policy)
    state, metrics = jax.eval_shape(step, state, frozen, teacher, batch)
    assert {leaf.dtype for leaf in state.trainable.values()} == {jnp.dtype(jnp.float32)}
    moments = [leaf.dtype for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert set(moments) == {jnp.dtype(jnp.float32)}
    assert metrics["loss"][0].dtype == jnp.float32
