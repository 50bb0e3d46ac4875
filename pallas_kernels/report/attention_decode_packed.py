"""Tells the report of the decode step over an encoded cache: one query per row, a full cache.

The cache is UltraQuant's, 4.25 bits a number. FLOP: 4 H for each pair of a query head and a key
that it sees. Bytes: codes and scales of the KV heads that are read, below each row's length and
inside the window, once; q read; out and the log-sum-exp written.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shapes import DecodeShape
from pallas_kernels.hardware.bundles import Known
from pallas_kernels.hardware.chips import CHIPS
from pallas_kernels.kv_cache.api import attention_decode
from pallas_kernels.kv_cache.formats import KV_FORMATS
from pallas_kernels.kv_cache.op import attention_decode_packed
from pallas_kernels.kv_cache.packed import PackedKV
from pallas_kernels.kv_cache.tpu.blocks import choose_packed_blocks
from pallas_kernels.kv_cache.tpu.decode_op import KERNEL, packed_call
from pallas_kernels.report import programs
from pallas_kernels.report.attention_decode import PASSES, SIZES, flops, shapes

__all__ = ["PASSES", "SIZES", "flops", "shapes"]

FORMAT = KV_FORMATS["ultraquant"]


def implementations() -> list[str]:
    return list(attention_decode_packed.implementations)


def chips_worth_a_row(implementation: str) -> tuple[str, ...]:
    """Returns the chips for which `--all-targets` compiles an implementation."""
    return programs.chips_worth_a_row(implementation, chunked=("h200",))


def known(shape: DecodeShape, implementation: str, passes: str, chip: str) -> dict[str, Known]:
    """Returns the share of a row's steps in which the TPU kernel starts and finishes the row."""
    if implementation != "tpu":
        return {}
    kind = CHIPS[chip].device_kinds[0]
    problem = shape.sequence.problem
    call = packed_call(problem, choose_packed_blocks(problem, shape.rows, kind))
    if call.steps == 1:
        return {}
    once = 1 / call.steps
    return {KERNEL: Known(shares={"== 0": once, f"== {call.steps - 1}": once})}


def least_bytes(shape: DecodeShape, passes: str) -> float:
    """Returns the traffic with device memory that no implementation can avoid, see above."""
    H = shape.sequence.head_size
    keys = shape.rows * shape.seen * shape.sequence.read_heads
    return float(keys * FORMAT.bytes_a_token(H) + shape.units * (4 * H + 4))


def program_inputs(shape: DecodeShape, passes: str) -> tuple:
    """Returns `inputs` with query heads side by side."""
    q_BNH, *others = inputs(shape, passes)
    return q_BNH.reshape(shape.rows, -1), *others


def forward(implementation, shape: DecodeShape, q, cache: PackedKV, lengths_B):
    """Returns output and log-sum-exp."""
    out, lse = attention_decode(
        q.reshape(shape.rows, -1, shape.sequence.head_size),
        lengths_B=lengths_B,
        cache=cache,
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
    cache = PackedKV.empty(FORMAT, B, S, K, H, jnp.bfloat16)
    cache = cache.append(draw(keys[1], B, S, K, H), draw(keys[2], B, S, K, H), 0)
    return q_BNH, cache, jnp.full((B,), S, jnp.int32)
