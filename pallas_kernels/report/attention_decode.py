"""Tells the report of the decode step of softmax attention: one query per row, a full cache.

FLOP: 4 H for each pair of a query head and a key that it sees. Bytes: keys and values of the KV
heads that are read, below each row's length and inside the window, once; q read; out and the
log-sum-exp written.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.attention import api
from pallas_kernels.attention.shapes import HEADS, DecodeShape
from pallas_kernels.attention.shapes import shapes as regular_shapes
from pallas_kernels.report import attention
from pallas_kernels.report.programs import chips_worth_a_row, known

__all__ = ["chips_worth_a_row", "known"]

SIZES = ("tokens", "heads", "groups", "window")
PASSES = ("forward",)


def shapes(
    heads: Sequence[int] = (), groups: Sequence[int] | None = None, **sizes
) -> list[DecodeShape]:
    """Returns every combination of regular heads.

    The default is 16 heads, alone and two per KV head, and 4 of them.
    """
    if heads or groups:
        found = regular_shapes(heads=heads or HEADS, groups=groups or (1,), **sizes)
    else:
        found = attention.shapes(**sizes) + regular_shapes(groups=(2,), **sizes)
    return [DecodeShape(sequence=sequence) for sequence in found]


def implementations() -> list[str]:
    return list(api._attention_decode.implementations)


def flops(shape: DecodeShape, passes: str) -> float:
    """Returns the matrix FLOP, see above."""
    return float(4 * shape.sequence.head_size * shape.units * shape.seen)


def least_bytes(shape: DecodeShape, passes: str) -> float:
    """Returns the traffic with device memory that no implementation can avoid, see above."""
    keys = 2 * shape.rows * shape.seen * shape.sequence.read_heads * shape.sequence.head_size
    return float(2 * keys + shape.units * (4 * shape.sequence.head_size + 4))


def program_inputs(shape: DecodeShape, passes: str) -> tuple:
    """Returns `inputs` with query heads side by side, as those of `attention`.

    The cache comes as it is stored from step to step, [B, S, K, H].
    """
    q_BNH, *others = inputs(shape, passes)
    return q_BNH.reshape(shape.rows, -1), *others


def forward(implementation, shape: DecodeShape, q, k_BSKH, v_BSKH, lengths_B):
    """Returns output and log-sum-exp."""
    out, lse = api.attention_decode(
        q.reshape(shape.rows, -1, shape.sequence.head_size),
        k_BSKH,
        v_BSKH,
        lengths_B,
        kv_head_of_query=shape.sequence.kv_head_of_query,
        window=shape.sequence.window,
        return_lse=True,
        implementation=implementation,
    )
    return out.reshape(q.shape), lse


def inputs(shape: DecodeShape, passes: str) -> tuple:
    """Makes random arguments."""
    keys = jax.random.split(jax.random.key(0), 3)
    B, S, K, H = shape.rows, shape.tokens, shape.sequence.kv_heads, shape.sequence.head_size
    draw = lambda key, *sizes: jax.random.normal(key, sizes, jnp.bfloat16)
    q_BNH = draw(keys[0], B, shape.sequence.heads, H)
    return q_BNH, draw(keys[1], B, S, K, H), draw(keys[2], B, S, K, H), jnp.full((B,), S, jnp.int32)
