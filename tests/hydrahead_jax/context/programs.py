"""Defines programs with ring attention and state passing, to compile for absent devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hydrahead_jax.context.delta import context_gated_delta
from hydrahead_jax.context.ring import ring_attention
from pallas_kernels.hardware.topology import h200_devices, tpu_devices

TOKENS, HEAD, RANKS = PartitionSpec(None, "context"), 128, 8


def attention_gradients(q, k, v, ids_BT, dout):
    """Returns the output and gradients of ring attention over the ranks."""
    ring = lambda *x: ring_attention(*x[:3], axis="context", order="zigzag", segment_ids_BT=x[3])
    whole = jax.shard_map(ring, in_specs=(TOKENS,) * 4, out_specs=TOKENS)
    out, pull = jax.vjp(lambda *x: whole(*x, ids_BT), q, k, v)
    return out, pull(dout)


def delta_gradients(q, k, v, log_decay_BTN, beta_BTN, ids_BT, starts_BT, dout):
    """Returns the output and gradients of the delta rule over the ranks."""

    def rule(*tokens):
        where = dict(segment_ids_BT=tokens[5], starts_BT=tokens[6], axis="context", order="zigzag")
        return context_gated_delta(*tokens[:5], **where)[0]

    whole = jax.shard_map(rule, in_specs=(TOKENS,) * 7, out_specs=TOKENS)
    arrays = (q, k, v, log_decay_BTN, beta_BTN)
    out, pull = jax.vjp(lambda *x: whole(*x, ids_BT, starts_BT), *arrays)
    return out, pull(dout)


def compiled_text(program, platform: str, tokens: int, heads: int) -> str:
    """Compiles `program` for eight devices with `tokens` each, in bf16, and returns its text."""
    devices = tpu_devices("v5p:2x2x2") if platform == "tpu" else h200_devices(RANKS)
    mesh = Mesh(np.array(devices), ("context",))
    B, T = 1, RANKS * tokens
    place = NamedSharding(mesh, TOKENS)
    array = lambda dtype, *dims: jax.ShapeDtypeStruct((B, T, *dims), dtype, sharding=place)
    head = array(jnp.bfloat16, heads, HEAD)
    gate, ids = array(jnp.float32, heads), array(jnp.int32)
    arguments = {
        attention_gradients: (head, head, head, ids, head),
        delta_gradients: (head, head, head, gate, gate, ids, array(jnp.bool_), head),
    }
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(program).lower(*arguments[program]).compile().as_text()
