"""Runs attribution patching: all effects at once, to first order, by one backward pass."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import Stream
from hydrahead_jax.models import layer_config, merge_block
from hydrahead_jax.selection.effects.pairwise import over_pairs
from hydrahead_jax.selection.effects.patched import live_change
from hydrahead_jax.selection.effects.sender import Receivers
from hydrahead_jax.selection.effects.trace import Trace, add_mlp, mixer_input, read_out, top_params

Live = Receivers | Literal["all"]


def drops(
    config: ModelConfig, params: dict, trace: Trace, live: Live, *, fraction: float = 0.0, mesh=None
) -> Float[Array, "B L N"]:
    """Returns how much m(x) would fall if each head went to its output in x', by the slope.

    With no head live it approximates the direct effect, with receivers live the direct effect and
    that through them, with "all" the total effect (times the denominator of Eq 10).

    Args:
      config: of the model.
      params: of the model.
      trace: trace of the pairs.
      live: for each layer the heads that are not frozen to x, or "all".
      fraction: how far all frozen heads have gone from x to x' where the slope is taken. A
        saturated softmax hides an effect at both ends and not between. "all" takes the slope at x.
      mesh: see `pairwise`.
    """
    layers = range(config.layers)
    steps = [
        over_pairs(
            _step_back,
            mesh,
            config=layer_config(config, k),
            live=live if live == "all" else tuple(live[k]),
        )
        for k in layers
    ]
    moved = jnp.float32(0.0 if live == "all" else fraction)
    x_BTD = trace.residual_BTD[0]
    entering_BTD = []
    for k in layers:
        entering_BTD.append(x_BTD)
        x_BTD = steps[k](params["layers"][k], x_BTD, *_of_layer(trace, k), moved, None)
    read = over_pairs(_read_back, mesh, config=config)
    slope_BTD = read(top_params(params), x_BTD, trace.answer_BJ, trace.distractor_BJ)
    drops_LBN = []
    for k in reversed(layers):
        slope_BTD, drop_BN = steps[k](
            params["layers"][k], entering_BTD[k], *_of_layer(trace, k), moved, slope_BTD
        )
        drops_LBN.append(drop_BN)
    return jnp.stack(drops_LBN[::-1], axis=1)


def _of_layer(trace: Trace, k: int):
    clean_BTD, out_BTD = trace.residual_BTD[k], trace.mixer_out_BTD[k]
    return clean_BTD, out_BTD, trace.change_BTNH[k], trace.stream, trace.caches[k]


def _step_back(
    params,
    x_BTD,
    clean_BTD,
    out_BTD,
    change_BTNH,
    stream: Stream,
    cache,
    moved,
    slope_BTD,
    *,
    config: ModelConfig,
    live,
):
    """Returns the layer's output.

    With a slope behind the layer, it also returns the slope before it and the drops.
    """
    block = merge_block(config, params)

    def layer(x_BTD, moved_BTNH):
        if live == "all":
            add_BTD = block.mixer(mixer_input(block, x_BTD), stream, cache).out_BTD
        else:
            add_BTD = out_BTD
        if live and live != "all":
            both_BSTD = jnp.stack([jax.lax.stop_gradient(clean_BTD), x_BTD], axis=1)
            add_BTD += live_change(block, both_BSTD, stream, cache, live)[:, 1]
        weight_NHD = block.mixer.output_weight_NHD().astype(jnp.float32)
        add_BTD += jnp.einsum("BTNH,NHD->BTD", moved_BTNH, weight_NHD)
        return add_mlp(block, x_BTD + add_BTD)

    moved_BTNH = change_BTNH * moved
    if slope_BTD is None:
        return layer(x_BTD, moved_BTNH)
    _, back = jax.vjp(layer, x_BTD, moved_BTNH)
    slope_BTD, slope_BTNH = back(slope_BTD)
    return slope_BTD, -jnp.einsum("BTNH,BTNH->BN", slope_BTNH, change_BTNH)


def _read_back(params, x_BTD, answer_BJ, distractor_BJ, *, config: ModelConfig):
    """Returns the slope of the readout behind the last layer."""
    J = answer_BJ.shape[1]

    def total(x_BTD):
        y_B1JD = x_BTD[:, None, -J - 1 : -1]
        return jnp.sum(read_out(params, y_B1JD, answer_BJ, distractor_BJ, config=config))

    return jax.grad(total)(x_BTD)
