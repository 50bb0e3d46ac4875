"""Makes tiny models that together take every choice; no parameter has a special value.

Compiling is what takes the time of these tests, so there are few delta-rule layers, and every
test calls `hidden` with the same shapes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import Hydra, HydraChoices, ModelConfig, NativeHybrid
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import abstract_params, merge
from tests.toy_config import toy_config

TEACHER = toy_config(vocab=96, embed=24, mlp=32, head_dim=8, rope_theta=1e4, max_length=128)
B, T, N, H = 6, 12, TEACHER.query_heads, TEACHER.head_dim
ALL = tuple(range(N))


def hybrid(*fa_heads: tuple[int, ...], tied: bool = True, **choices) -> ModelConfig:
    """Returns the toy with one HydraHead layer for each tuple of softmax heads."""
    mixers = tuple(Hydra(fa_heads=heads, choices=HydraChoices(**choices)) for heads in fa_heads)
    return dataclasses.replace(TEACHER, mixers=mixers, tied_embeddings=tied)


FROM_SCRATCH = {"value_silu": True, "output_norm": True, "qk_norm": False}
NATIVE_HYBRID = dataclasses.replace(
    TEACHER,
    mixers=(
        NativeHybrid(window=3, slots=5),
        NativeHybrid(window=0, slots=3, gate_normaliser=2.0),
        NativeHybrid(window=None, slots=4, value_silu=True, qk_norm=False),
        NativeHybrid(window=4, slots=2, sinks=False, **FROM_SCRATCH),
    ),
)
MODELS = {
    "teacher": TEACHER,
    "hybrid, then softmax only": hybrid((0, 3), ALL, log_scale_base=5.0),
    "softmax only, then delta rule only, shared projections": hybrid(
        ALL, (), query_decomposition=False
    ),
    "no fusion, no convolution": hybrid(
        (2,), fusion="none", short_conv=False, log_scale_in_training=True
    ),
    "gated fusion, shared projections": hybrid(
        (0, 2, 3),
        fusion="gated",
        query_decomposition=False,
        conv_silu=True,
        neg_eigval=True,
        tied=False,
    ),
    "native hybrid": NATIVE_HYBRID,
    "native hybrid heads": hybrid(
        (2,), (), fusion="gated", native_hybrid=NativeHybrid(window=3, slots=5)
    ),
}


WIDE_HEADS = dataclasses.replace(TEACHER, head_dim=32, mixers=(NativeHybrid(window=None, slots=4),))
"""Has a KV cache, null keys, and heads that every format of few bits takes."""


def params_of(name: str) -> dict:
    """Returns random parameters, also for those that start at zero or one."""
    return random_params(MODELS[name])


@functools.cache
def random_params(config: ModelConfig) -> dict:
    """Returns the parameters of `params_of` for any config."""
    rng = np.random.default_rng(0)
    norms = ("q_norm_H", "k_norm_H", "out_norm_H", "out_norm_NH", "mixer_norm_D", "mlp_norm_D")
    centre = {"dt_bias_N": -2.0} | dict.fromkeys((*norms, "gamma_N"), 1.0)

    def draw(path, leaf):
        values = centre.get(path[-1].key, 0.0) + 0.3 * rng.normal(size=leaf.shape)
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def keep_all(config: ModelConfig) -> dict[int, HeadEdit]:
    """Returns edits that change nothing; tests with edits then share the compiled function."""
    edit = HeadEdit(jnp.zeros((B, N)), jnp.zeros((B, T, N, H)))
    return {layer: edit for layer in range(config.layers)}


def hidden(config, params, tokens_BT, segment_ids_BT=None, edits=None, training=False):
    """Returns hidden states and taps of B sequences of T tokens."""
    segment_ids_BT = np.ones((B, T)) if segment_ids_BT is None else segment_ids_BT
    return _hidden(
        config,
        params,
        jnp.asarray(tokens_BT, jnp.int32),
        jnp.asarray(segment_ids_BT, jnp.int32),
        keep_all(config) | (edits or {}),
        training=training,
    )


@functools.partial(jax.jit, static_argnames=("config", "training"))
def _hidden(config, params, tokens_BT, segment_ids_BT, edits, training):
    output = merge(config, params)(
        tokens_BT, segment_ids_BT=segment_ids_BT, edits=edits, training=training
    )
    return output.hidden_BTD, output.taps


def distinct_tokens() -> np.ndarray:
    """Returns tokens [B, T] in which no id comes twice."""
    ids = np.random.default_rng(2).permutation(TEACHER.vocab)
    return ids[: B * T].reshape(B, T).astype(np.int32)
