"""Runs streams of x in which one head is taken from x', and passes them through a layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import Stream
from hydrahead_jax.models import Block, layer_config, merge_block
from hydrahead_jax.selection.effects.pairwise import over_pairs
from hydrahead_jax.selection.effects.trace import Trace, add_mlp, mixer_input


def patched_streams(
    config: ModelConfig, params: dict, trace: Trace, layer: int, heads: Sequence[int], mesh=None
):
    """Returns the residual stream behind `layer`, [B, 1 + S, T, D].

    It is x itself, and x with each of S heads of this layer taken from x'.
    """
    run = over_pairs(_patch, mesh, config=layer_config(config, layer))
    chosen_BS = jnp.tile(jnp.asarray(heads, jnp.int32), (len(trace.clean_B), 1))
    after_BTD = trace.after_mixer_BTD(layer)
    return run(params["layers"][layer], after_BTD, trace.change_BTNH[layer], chosen_BS)


def live_change(block: Block, x_BSTD, stream: Stream, cache, listening: tuple[int, ...]):
    """Returns the change of the mixer's output relative to stream 0 that these heads cause."""
    compute = lambda x_BTD: block.mixer.some_heads(
        mixer_input(block, x_BTD), stream, cache, listening
    )
    heads_BSTRH = jax.vmap(compute, in_axes=1, out_axes=1)(x_BSTD).astype(jnp.float32)
    weight_RHD = block.mixer.output_weight_NHD()[jnp.array(listening)].astype(jnp.float32)
    return jnp.einsum("BSTRH,RHD->BSTD", heads_BSTRH - heads_BSTRH[:, :1], weight_RHD)


def _patch(params, after_mixer_BTD, change_BTNH, chosen_BS, *, config: ModelConfig):
    block = merge_block(config, params)
    weight_SHD = block.mixer.output_weight_NHD()[chosen_BS[0]].astype(jnp.float32)
    change_BSTD = jnp.einsum("BTSH,SHD->BSTD", change_BTNH[:, :, chosen_BS[0]], weight_SHD)
    x_B1TD = after_mixer_BTD[:, None]
    return add_mlp(block, jnp.concatenate([x_B1TD, x_B1TD + change_BSTD], axis=1))
