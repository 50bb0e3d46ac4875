"""Computes a model on x and on x', layer by layer, from where the two differ on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.cache import Cache, init_cache
from hydrahead_jax.cache.layered import CONV_TAPS, LayerCache
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import Stream
from hydrahead_jax.models import Block, layer_config, merge_block
from hydrahead_jax.models.stream import extend_cache, make_stream
from hydrahead_jax.ops.norms import rms_norm
from hydrahead_jax.selection.effects.pairwise import over_pairs, place_pairs
from hydrahead_jax.selection.effects.readout import readout_of_residual, readout_positions
from hydrahead_jax.selection.probes.pairs import ProbePairs

_STARTS, _SHORTEST_STEP = 8, 256


class Trace(NamedTuple):
    """Records what the model computes on x and on x'; lists have one entry per layer.

    T counts tokens from the first that differs in some pair, rounded down so that few lengths are
    compiled; everything before is the same in x and x'.

    Attributes:
      stream: where the T tokens stand.
      caches: the tokens before them, as each mixer reads them; None if there are none.
      residual_BTD: what enters the layer, in x; one entry more, after the last layer.
      mixer_out_BTD: what the mixer adds, in x.
      change_BTNH: head outputs in x' less those in x.
      at: the positions that predict the answer, among the T.
      answer_BJ: as in ProbePairs.
      distractor_BJ: as in ProbePairs.
      clean_B: m(x).
      corrupted_B: m(x').
    """

    stream: Stream
    caches: list[LayerCache | None]
    residual_BTD: list[jax.Array]
    mixer_out_BTD: list[jax.Array]
    change_BTNH: list[jax.Array]
    at: slice
    answer_BJ: jax.Array
    distractor_BJ: jax.Array
    clean_B: jax.Array
    corrupted_B: jax.Array

    def after_mixer_BTD(self, layer: int) -> jax.Array:
        return self.residual_BTD[layer] + self.mixer_out_BTD[layer]


def trace_pairs(config: ModelConfig, params: dict, pairs: ProbePairs, mesh=None) -> Trace:
    """Runs the common beginning once, and then both ends.

    The residual stream is float32 whatever the parameters are: the difference of two readouts is
    what counts. Memory beside the parameters: about L B T (2 D + N H) float32 numbers and the keys
    and values of the tokens before.
    """
    length = pairs.tokens_BT.shape[1]
    start = _first_difference(pairs)
    pairs = place_pairs(pairs, mesh)
    tokens_BT, corrupt_BT, segment_ids_BT, answer_BJ, distractor_BJ = pairs
    end = slice(start, length)
    embed = over_pairs(_embed, mesh)
    top = top_params(params)
    x_BTD, y_BTD = (embed(top, tokens_BT[:, end]) for tokens_BT in (tokens_BT, corrupt_BT))
    stream, caches = _prefix(config, params, tokens_BT, segment_ids_BT, start, mesh)
    residual_BTD, mixer_out_BTD, change_BTNH = [], [], []
    for layer, cache in enumerate(caches):
        residual_BTD.append(x_BTD)
        run = over_pairs(_layer_of_both, mesh, config=layer_config(config, layer))
        x_BTD, y_BTD, out_BTD, change = run(params["layers"][layer], x_BTD, y_BTD, stream, cache)
        mixer_out_BTD.append(out_BTD)
        change_BTNH.append(change)
    at = readout_positions(length - start, answer_BJ.shape[1])
    read = over_pairs(read_out, mesh, config=config)
    both_BSJD = jnp.stack([x_BTD[:, at], y_BTD[:, at]], axis=1)
    readout_BS = read(top, both_BSJD, answer_BJ, distractor_BJ)
    return Trace(
        stream=stream,
        caches=caches,
        residual_BTD=[*residual_BTD, x_BTD],
        mixer_out_BTD=mixer_out_BTD,
        change_BTNH=change_BTNH,
        at=at,
        answer_BJ=answer_BJ,
        distractor_BJ=distractor_BJ,
        clean_B=readout_BS[:, 0],
        corrupted_B=readout_BS[:, 1],
    )


def mixer_input(block: Block, x_BTD):
    """Returns the normalised residual stream, in the dtype that the layer computes in."""
    return block.mixer_input(x_BTD).astype(block.mlp.w_up_DF.dtype)


def add_mlp(block: Block, x_XD):
    """Adds the MLP to float32 streams of any leading axes; computes it in the layer's dtype."""
    normed_XD = rms_norm(x_XD, block.mlp_norm_D[...], eps=block.eps)
    flat_1XD = normed_XD.astype(block.mlp.w_up_DF.dtype).reshape(1, -1, x_XD.shape[-1])
    return x_XD + block.mlp(flat_1XD).reshape(x_XD.shape)


def top_params(params: dict) -> dict:
    """Returns all parameters that belong to no layer."""
    return {name: value for name, value in params.items() if name != "layers"}


def read_out(params, x_BSJD, answer_BJ, distractor_BJ, *, config: ModelConfig):
    return readout_of_residual(config, params, x_BSJD, answer_BJ, distractor_BJ)


def _first_difference(pairs: ProbePairs) -> int:
    """Returns a position at or before the first token that differs.

    It comes before any readout position, and moves in steps of an eighth of the length, at least
    256 tokens.
    """
    length = pairs.tokens_BT.shape[1]
    first = int(np.argmax((pairs.tokens_BT != pairs.corrupt_BT).any(axis=0)))
    first = min(first, readout_positions(length, pairs.answer_BJ.shape[1]).start)
    step = max(_SHORTEST_STEP, length // _STARTS)
    return first // step * step


def _prefix(config: ModelConfig, params, tokens_BT, segment_ids_BT, start: int, mesh):
    """Returns the Stream of the tokens from `start` on, and each layer's cache of those before."""
    ends_BT = segment_ids_BT[:, start:]
    if start == 0:
        return make_stream(ends_BT.shape, ends_BT, None, None, False), [None] * config.layers
    begins_BT = segment_ids_BT[:, :start]
    cache = _empty_cache(segment_ids_BT)
    stream = make_stream(begins_BT.shape, begins_BT, None, cache, False)
    x_BTD = over_pairs(_embed, mesh)(top_params(params), tokens_BT[:, :start])
    caches = []
    for layer, layer_params in params["layers"].items():
        run = over_pairs(_layer_of_prefix, mesh, config=layer_config(config, layer))
        x_BTD, layer_cache = run(layer_params, x_BTD, stream, segment_ids_BT)
        caches.append(layer_cache)
    cache = extend_cache(cache, [], stream)
    return make_stream(ends_BT.shape, ends_BT, None, cache, False), caches


def _empty_cache(segment_ids_BT) -> Cache:
    B = len(segment_ids_BT)
    return Cache(
        layers=[],
        segment_ids_BS=jnp.zeros_like(segment_ids_BT),
        tail_segment_ids_BW=jnp.zeros((B, CONV_TAPS - 1), jnp.int32),
        positions_B=jnp.zeros((B,), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def _embed(params, tokens_BT):
    return params["w_embed_VD"][tokens_BT].astype(jnp.float32)


def _layer_of_prefix(params, x_BTD, stream: Stream, segment_ids_BT, *, config: ModelConfig):
    block = merge_block(config, params)
    dtype = block.mlp.w_up_DF.dtype
    empty = init_cache(config, *segment_ids_BT.shape, dtype).layers[0]
    out_BTD, _, cache, _ = block.mixer(mixer_input(block, x_BTD), stream, empty)
    return add_mlp(block, x_BTD + out_BTD), cache


def _layer_of_both(params, x_BTD, y_BTD, stream: Stream, cache, *, config: ModelConfig):
    block = merge_block(config, params)
    out_BTD, heads_BTNH, *_ = block.mixer(mixer_input(block, x_BTD), stream, cache)
    other_BTD, other_BTNH, *_ = block.mixer(mixer_input(block, y_BTD), stream, cache)
    x_BTD, y_BTD = add_mlp(block, x_BTD + out_BTD), add_mlp(block, y_BTD + other_BTD)
    change_BTNH = other_BTNH.astype(jnp.float32) - heads_BTNH.astype(jnp.float32)
    return x_BTD, y_BTD, out_BTD.astype(jnp.float32), change_BTNH
