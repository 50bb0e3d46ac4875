"""Runs attention on Hopper GPUs: says what is accepted, and puts the kernels together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention.gpu.blocks import HEAD_DIMS, TILE, Blocks, choose_blocks
from pallas_kernels.attention.positive_scale import with_positive_scale
from pallas_kernels.attention.visibility import Segments, Visibility
from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.hopper.machine import check_machine, interpreter
from pallas_kernels.varying import vary_alike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Says what is known while tracing; `scale` is positive."""

    visibility: Visibility
    heads: tuple[int, ...]
    scale: float
    blocks: Blocks
    interpret: object


def attention_gpu(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    q_start,
    segments: Segments | None,
    visibility: Visibility,
    kv_head_of_query: tuple[int, ...],
    scale: float,
    interpret=False,
    blocks: Blocks | None = None,
):
    """Computes `api.attention` for bfloat16 with head dimensions 64, 128 and 256.

    `blocks` overrides `choose_blocks`. The backward reads the arguments, the output and the
    log-sum-exp, the last two under the names "attention_out" and "attention_lse". Gradients are the
    same in every run.

    Raises:
      NotImplementedError: the kernels are not for this device, jax, dtype or head dimension.
    """
    check_machine(q_BTNH, interpret)
    check_arrays(q=q_BTNH, k=k_BSKH, v=v_BSKH)
    q_BTNH, scale = with_positive_scale(q_BTNH, scale)
    settings = Settings(
        visibility=visibility,
        heads=kv_head_of_query,
        scale=scale,
        blocks=blocks or choose_blocks(q_BTNH.shape[-1]),
        interpret=interpreter(interpret),
    )
    q_start_B = jnp.broadcast_to(jnp.asarray(q_start, jnp.int32), q_BTNH.shape[:1])
    return _attention(settings, *vary_alike(q_BTNH, k_BSKH, v_BSKH, q_start_B, segments))


def attention_gradients_gpu(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    out_BTNH,
    lse_BTN,
    dout_BTNH,
    *,
    q_start,
    segments: Segments | None,
    visibility: Visibility,
    kv_head_of_query: tuple[int, ...],
    scale: float,
    interpret=False,
):
    """Computes `gradients.attention_gradients`; refuses what `attention_gpu` does."""
    check_machine(q_BTNH, interpret)
    check_arrays(q=q_BTNH, k=k_BSKH, v=v_BSKH)
    settings = Settings(
        visibility=visibility,
        heads=kv_head_of_query,
        scale=scale,
        blocks=choose_blocks(q_BTNH.shape[-1]),
        interpret=interpreter(interpret),
    )
    q_start_B = jnp.broadcast_to(jnp.asarray(q_start, jnp.int32), q_BTNH.shape[:1])
    arrays = vary_alike(q_BTNH, k_BSKH, v_BSKH, q_start_B, segments, out_BTNH, lse_BTN, dout_BTNH)
    *inputs, out_BTNH, lse_BTN, dout_BTNH = arrays
    return _backward(settings, (*inputs, out_BTNH, lse_BTN), (dout_BTNH, jnp.zeros_like(lse_BTN)))[
        :3
    ]


def check_arrays(**arrays) -> None:
    """Refuses dtypes and head dimensions of q, k and v, by name, that the kernels do not take."""
    for name, x in arrays.items():
        if x.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} is {x.dtype}; bfloat16 is accepted")
        if x.shape[-1] not in HEAD_DIMS:
            raise NotImplementedError(
                f"the head dimension of {name} is {x.shape[-1]}; {HEAD_DIMS} are accepted"
            )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings: Settings, *arguments):
    out_BTNH, lse_BNT = vmap_into_batch(functools.partial(_outputs, settings))(*arguments)
    return out_BTNH, jnp.swapaxes(lse_BNT, 1, 2)


def _forward(settings, *arguments):
    out_BTNH, lse_BTN = _attention(settings, *arguments)
    out_BTNH = checkpoint_name(out_BTNH, "attention_out")
    lse_BTN = checkpoint_name(lse_BTN, "attention_lse")
    return (out_BTNH, lse_BTN), (*arguments, out_BTNH, lse_BTN)


def _backward(settings, residuals, cotangents):
    (q_BTNH, *others), (dout_BTNH, dlse_BTN) = residuals, cotangents
    *others, out_BTNH, lse_BTN = others
    delta_BTN = jnp.sum(out_BTNH.astype(jnp.float32) * dout_BTNH, axis=3) - dlse_BTN
    gradients = vmap_into_batch(functools.partial(_gradients, settings))
    dq, dk, dv = gradients(q_BTNH, *others, dout_BTNH, lse_BTN, delta_BTN)
    return dq, dk, dv, None, None


_attention.defvjp(_forward, _backward)


def _outputs(settings: Settings, q_BTNH, k_BSKH, v_BSKH, q_start_B, segments):
    from pallas_kernels.attention.gpu.forward import forward
    from pallas_kernels.attention.gpu.masks import places_of
    from pallas_kernels.attention.gpu.ranges import Cut, block_ranges

    T, ring = q_BTNH.shape[1], settings.blocks.forward
    queries, keys = Cut(T, TILE), Cut(k_BSKH.shape[1], ring.block)
    out_BTNH, lse_BNT = forward(
        *(q_BTNH, k_BSKH, v_BSKH, jnp.array(settings.heads, jnp.int32)),
        block_ranges(settings.visibility, q_start_B, segments, queries, keys),
        places_of(q_start_B, segments, queries, keys),
        visibility=settings.visibility,
        scale=settings.scale,
        keys=ring,
        interpret=settings.interpret,
    )
    return out_BTNH, lse_BNT[:, :, :T]


def _gradients(
    settings: Settings, q_BTNH, k_BSKH, v_BSKH, q_start_B, segments, dout_BTNH, lse_BTN, delta_BTN
):
    from pallas_kernels.attention.gpu.dkv import key_value_gradients
    from pallas_kernels.attention.gpu.dq import query_gradient
    from pallas_kernels.attention.gpu.masks import places_of
    from pallas_kernels.attention.gpu.passes import readers_of, saved_of
    from pallas_kernels.attention.gpu.ranges import Cut, block_ranges

    cuts, (T, (S, K)) = settings.blocks, (q_BTNH.shape[1], k_BSKH.shape[1:3])
    arrays = (q_BTNH, k_BSKH, v_BSKH, dout_BTNH, saved_of(lse_BTN, delta_BTN, TILE))
    common = dict(
        visibility=settings.visibility, scale=settings.scale, interpret=settings.interpret
    )
    ranges = functools.partial(block_ranges, settings.visibility, q_start_B, segments)
    queries, keys = Cut(T, TILE), Cut(S, cuts.dq.block)
    dq_BTNH = query_gradient(
        *(*arrays, jnp.array(settings.heads, jnp.int32), ranges(queries, keys)),
        places_of(q_start_B, segments, queries, keys),
        keys=cuts.dq,
        **common,
    )
    queries, keys = Cut(T, cuts.dkv.block), Cut(S, cuts.tile_dkv)
    dk_BSKH, dv_BSKH = key_value_gradients(
        *(*arrays, readers_of(settings.heads, K), ranges(queries, keys, of_keys=True)),
        places_of(q_start_B, segments, queries, keys),
        tile=cuts.tile_dkv,
        queries=cuts.dkv,
        **common,
    )
    return dq_BTNH, dk_BSKH, dv_BSKH
