"""Measures sender scores by path patching: a head's effect on the answer by way of receivers."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import Stream
from hydrahead_jax.models import layer_config, merge_block
from hydrahead_jax.selection.effects.pairwise import over_pairs
from hydrahead_jax.selection.effects.patched import live_change, patched_streams
from hydrahead_jax.selection.effects.readout import readout_positions
from hydrahead_jax.selection.effects.trace import Trace, add_mlp, read_out, top_params

Receivers = tuple[tuple[int, ...], ...]


def patched_readouts(
    config: ModelConfig,
    params: dict,
    trace: Trace,
    layer: int,
    heads: Sequence[int],
    receivers: Receivers,
    mesh=None,
) -> Float[Array, "B S"]:
    """Returns m(x) where only the receivers feel that a head of `layer` has its output from x'.

    For each head two streams run. In the first the head is patched, the receivers of later layers
    are live and every other head is frozen to x: it costs MLPs, and the receivers, at all tokens
    from the first difference on. The second is x plus what the receivers changed in the first;
    with mixers frozen it needs the readout positions alone. Equal to `reference.sender_readouts`
    up to rounding. It holds B (1 + S) T (D + 3 F) numbers for S heads.

    Args:
      config: of the model.
      params: of the model.
      trace: trace of the pairs.
      layer: layer of the senders.
      heads: the senders, as many at a time as memory allows.
      receivers: for each layer, the softmax heads that are receivers.
      mesh: see `pairwise`.
    """
    last = max((k for k, listening in enumerate(receivers) if listening), default=-1)
    if last <= layer:
        return jnp.broadcast_to(trace.clean_B[:, None], (len(trace.clean_B), len(heads)))
    x_BSTD = patched_streams(config, params, trace, layer, heads, mesh)
    y_BJD = trace.residual_BTD[layer + 1][:, trace.at]
    y_BSJD = jnp.repeat(y_BJD[:, None], x_BSTD.shape[1], axis=1)
    for k in range(layer + 1, config.layers):
        static = {"config": layer_config(config, k)}
        layer_params, out_BTD = params["layers"][k], trace.mixer_out_BTD[k]
        if k <= last:
            run = over_pairs(_heard, mesh, **static, listening=receivers[k])
            streams = (x_BSTD, y_BSJD, out_BTD, trace.stream, trace.caches[k])
            x_BSTD, y_BSJD = run(layer_params, *streams)
        else:
            run = over_pairs(_unheard, mesh, **static)
            y_BSJD = run(layer_params, y_BSJD, out_BTD[:, trace.at])
    read = over_pairs(read_out, mesh, config=config)
    return read(top_params(params), y_BSJD, trace.answer_BJ, trace.distractor_BJ)[:, 1:]


def _heard(
    params, x_BSTD, y_BSJD, out_BTD, stream: Stream, cache, *, config: ModelConfig, listening
):
    block = merge_block(config, params)
    at = readout_positions(x_BSTD.shape[2], y_BSJD.shape[2])
    add_BSTD = out_BTD[:, None]
    if listening:
        add_BSTD = add_BSTD + live_change(block, x_BSTD, stream, cache, listening)
    return add_mlp(block, x_BSTD + add_BSTD), add_mlp(block, y_BSJD + add_BSTD[:, :, at])


def _unheard(params, y_BSJD, out_BJD, *, config: ModelConfig):
    return add_mlp(merge_block(config, params), y_BSJD + out_BJD[:, None])
