"""Runs the mixers' kernels on a mesh: each device computes its own rows, tokens and heads."""

import jax
import jax.numpy as jnp

from hydrahead_jax.context.delta import context_gated_delta
from hydrahead_jax.context.halo import context_short_conv
from hydrahead_jax.context.ring import ring_attention
from hydrahead_jax.context.slots import context_native_hybrid
from hydrahead_jax.mixers.types import Stream
from hydrahead_jax.ops.null_keys import with_null_keys
from hydrahead_jax.sharding import Layout
from pallas_kernels import attention, gated_delta, native_hybrid_attention


def attention_on(
    layout: Layout, q_BTNH, k_BTKH, v_BTKH, kv_head_of_query, segment_ids_BT, *, null_keys: int = 0
):
    """Computes `attention` of complete rows; if tokens are sharded, keys travel round the ring.

    Every query also sees `null_keys` keys of logit 0 and value 0.
    """
    heads = _local_heads(kv_head_of_query, k_BTKH.shape[2], layout.size("tensor"))
    if heads is None:
        every = jnp.array(kv_head_of_query)
        k_BTKH, v_BTKH = k_BTKH[:, :, every], v_BTKH[:, :, every]
        heads = tuple(range(len(kv_head_of_query) // layout.size("tensor")))

    def local(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
        arguments = {"kv_head_of_query": heads, "segment_ids_BT": segment_ids_BT}
        if layout.size("context") > 1:
            arguments |= {"axis": "context", "order": layout.order, "null_keys": null_keys}
            return ring_attention(q_BTNH, k_BTKH, v_BTKH, **arguments)
        if not null_keys:
            return attention(q_BTNH, k_BTKH, v_BTKH, **arguments)
        found = attention(q_BTNH, k_BTKH, v_BTKH, return_lse=True, **arguments)
        return with_null_keys(*found, count=null_keys)[0]

    arrays = (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    return _mapped(layout, local, ("BTNH", "BTKH", "BTKH", "BT"), "BTNH")(*arrays)


def native_hybrid_on(
    layout: Layout,
    inputs,
    stream: Stream,
    *,
    window: int,
    rotated,
    kv_head_of_query: tuple[int, ...],
    sinks: bool,
):
    """Runs `native_hybrid_attention` of complete rows, and passes slots between ranks.

    Args:
      inputs: (q, k, v, log_forget).
      rotated: (q, k) with rotary embedding.

    Other arguments as `native_hybrid_attention`.

    Returns:
      The output, and the log-sum-exps over the slots and over the window.
    """
    heads = _local_heads(kv_head_of_query, inputs[1].shape[2], layout.size("tensor"))
    if heads is None:
        every = jnp.array(kv_head_of_query)
        inputs = (inputs[0], *(x[:, :, every] for x in inputs[1:]))
        rotated = (rotated[0], rotated[1][:, :, every])
        heads = tuple(range(len(kv_head_of_query) // layout.size("tensor")))

    def local(q, k, v, log_forget_BTKM, q_rotated, k_rotated, segment_ids_BT, starts_BT):
        arrays = (q, k, v, log_forget_BTKM)
        arguments = {
            "window": window,
            "rotated": (q_rotated, k_rotated),
            "kv_head_of_query": heads,
            "segment_ids_BT": segment_ids_BT,
            "sinks": sinks,
        }
        if layout.size("context") > 1:
            arguments |= {"axis": "context", "order": layout.order, "starts_BT": starts_BT}
            return context_native_hybrid(*arrays, **arguments)
        found = native_hybrid_attention(*arrays, **arguments)
        return found.out_BTNH, found.slots_lse_BTN, found.window_lse_BTN

    dims = ("BTNH", "BTKH", "BTKH", "BTKM", "BTNH", "BTKH", "BT", "BT")
    mapped = _mapped(layout, local, dims, ("BTNH", "BTN", "BTN"))
    return mapped(*inputs, *rotated, stream.segment_ids_BT, stream.starts_BT)


def gated_delta_on(layout: Layout, inputs, stream: Stream):
    """Runs `gated_delta` on (q, k, v, log_decay, beta), and passes states between ranks."""

    def local(q, k, v, log_decay_BTN, beta_BTN, segment_ids_BT, starts_BT):
        arrays = (q, k, v, log_decay_BTN, beta_BTN)
        if layout.size("context") == 1:
            return gated_delta(*arrays, segment_ids_BT=segment_ids_BT)[0]
        out_BTNH, _ = context_gated_delta(
            *arrays,
            axis="context",
            order=layout.order,
            segment_ids_BT=segment_ids_BT,
            starts_BT=starts_BT,
        )
        return out_BTNH

    dims = ("BTNH", "BTNH", "BTNH", "BTN", "BTN", "BT", "BT")
    mapped = _mapped(layout, local, dims, "BTNH")
    return mapped(*inputs, stream.segment_ids_BT, stream.starts_BT)


def short_conv_on(layout: Layout, x_BTNH, weight_WNH, stream: Stream):
    """Computes `short_conv` of complete rows, nothing before their first tokens."""

    def local(x_BTNH, weight_WNH, segment_ids_BT):
        B, _, N, H = x_BTNH.shape
        taps = weight_WNH.shape[0] - 1
        return context_short_conv(
            x_BTNH,
            weight_WNH,
            jnp.zeros((B, taps, N, H), x_BTNH.dtype),
            segment_ids_BT,
            jnp.zeros((B, taps), segment_ids_BT.dtype),
            axis="context",
            order=layout.order,
        )

    mapped = _mapped(layout, local, ("BTNH", "WNH", "BT"), "BTNH")
    return mapped(x_BTNH, weight_WNH, stream.segment_ids_BT)


def _mapped(layout: Layout, local, arguments, results: str | tuple[str, ...]):
    specs = tuple(layout.spec(dims) for dims in arguments)
    out_specs = jax.tree.map(layout.spec, results)
    return jax.shard_map(local, mesh=layout.mesh, in_specs=specs, out_specs=out_specs)


def _local_heads(kv_head_of_query, kv_heads: int, ranks: int) -> tuple[int, ...] | None:
    """Returns the KV head of each query head among those of its rank.

    Returns None unless that is the same on all ranks.
    """
    if kv_heads % ranks:
        return None
    queries, keys = len(kv_head_of_query) // ranks, kv_heads // ranks
    parts = {
        tuple(head - rank * keys for head in kv_head_of_query[rank * queries :][:queries])
        for rank in range(ranks)
    }
    heads = parts.pop()
    return heads if not parts and all(0 <= head < keys for head in heads) else None
