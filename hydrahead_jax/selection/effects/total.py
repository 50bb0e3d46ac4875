"""Measures total effects: one head taken from x', and nothing frozen."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import Stream
from hydrahead_jax.models import layer_config, merge_block
from hydrahead_jax.selection.effects.pairwise import over_pairs
from hydrahead_jax.selection.effects.patched import patched_streams
from hydrahead_jax.selection.effects.trace import Trace, add_mlp, mixer_input, read_out, top_params


def patched_readouts(
    config: ModelConfig, params: dict, trace: Trace, layer: int, heads: Sequence[int], mesh=None
) -> Float[Array, "B S"]:
    """Returns m(x) with each head of `layer` in turn taken from x', all later layers live.

    It costs complete layers at all tokens from the first difference on. Equal to
    `reference.total_readouts` up to rounding.
    """
    x_BSTD = patched_streams(config, params, trace, layer, heads, mesh)
    for k in range(layer + 1, config.layers):
        run = over_pairs(_live, mesh, config=layer_config(config, k))
        x_BSTD = run(params["layers"][k], x_BSTD, trace.stream, trace.caches[k])
    read = over_pairs(read_out, mesh, config=config)
    spans = (trace.answer_BJ, trace.distractor_BJ)
    return read(top_params(params), x_BSTD[:, 1:, trace.at], *spans)


def _live(params, x_BSTD, stream: Stream, cache, *, config: ModelConfig):
    block = merge_block(config, params)
    mixer = lambda x_BTD: block.mixer(mixer_input(block, x_BTD), stream, cache).out_BTD
    return add_mlp(block, x_BSTD + jax.vmap(mixer, in_axes=1, out_axes=1)(x_BSTD))
