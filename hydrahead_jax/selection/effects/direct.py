"""Measures receiver scores: each head's direct effect on the answer, by activation patching."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import layer_config, merge_block
from hydrahead_jax.selection.effects.pairwise import over_pairs
from hydrahead_jax.selection.effects.trace import Trace, add_mlp, read_out, top_params

_LAYERS_A_SHAPE = 4


def patched_readouts(
    config: ModelConfig, params: dict, trace: Trace, mesh=None
) -> Float[Array, "B L N"]:
    """Returns m(x) with each head of each layer in turn taken from x', later mixers frozen.

    This is Eq 10 (arXiv 2606.20097). With frozen mixers nothing crosses positions, so the J readout
    positions are enough: one walk through the layers starts N patched streams at each and takes all
    of them through norm and MLP. Equal to `reference.receiver_readouts` up to rounding. It holds L
    N B J (D + 3 F) numbers.
    """
    N, at = config.query_heads, trace.at
    x_BSJD = trace.residual_BTD[0][:, None, at]
    for layer in range(config.layers):
        if (x_BSJD.shape[1] - 1) < (layer + 1) * N:
            room = min(_LAYERS_A_SHAPE, config.layers - layer) * N
            x_BSJD = jnp.pad(x_BSJD, ((0, 0), (0, room), (0, 0), (0, 0)))
        run = over_pairs(_layer, mesh, config=layer_config(config, layer))
        x_BSJD = run(
            params["layers"][layer],
            x_BSJD,
            trace.mixer_out_BTD[layer][:, at],
            trace.change_BTNH[layer][:, at],
            jnp.int32(1 + layer * N),
        )
    read = over_pairs(read_out, mesh, config=config)
    readout_BS = read(top_params(params), x_BSJD, trace.answer_BJ, trace.distractor_BJ)
    return readout_BS[:, 1:].reshape(-1, config.layers, N)


def _layer(params, x_BSJD, mixer_out_BJD, change_BJNH, first, *, config: ModelConfig):
    """Runs one layer.

    It adds the mixer's output in x, starts the layer's streams at index `first`, and adds the MLP.
    """
    block = merge_block(config, params)
    x_BSJD += mixer_out_BJD[:, None]
    weight_NHD = block.mixer.output_weight_NHD().astype(jnp.float32)
    change_BNJD = jnp.einsum("BJNH,NHD->BNJD", change_BJNH, weight_NHD)
    x_BSJD = jax.lax.dynamic_update_slice_in_dim(x_BSJD, x_BSJD[:, :1] + change_BNJD, first, axis=1)
    return add_mlp(block, x_BSJD)
