"""Tells the report of slot attention: programs and least work.

FLOP and bytes a token, a multiply-add being 2 FLOP, chunk C, M slots, N query heads, K KV heads.
Each product of the chunked form is counted once and in full:

    forward    q against keys and slots, p against shares and slots   N (4 C H + 4 M H + 4 C M)
               writes of the slots                                    K 4 M H
    backward   forward again, but for what reads p                    N (2 C H + 2 M H + 2 C M)
               its products differentiated                            N (8 C H + 8 M H + 10 C M)
               writes differentiated                                  K 8 M H

    forward    q read, out written (4 H), log-sum-exp (4)             a query head
               k, v read (4 H), gates (4 M)                           a KV head
    backward   q, dout read, dq written (6 H), log-sum-exp (8)           a query head
               k, v read, dk, dv written (8 H), gates (8 M)           a KV head

C is 64 whatever an implementation chooses, so that no one looks better by doing more; the slots of
a sequence's start and end are left out.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.report.programs import chips_worth_a_row, known, side_by_side
from pallas_kernels.slot_attention import api
from pallas_kernels.slot_attention.shapes import Shape, shapes

__all__ = ["chips_worth_a_row", "known", "shapes"]

SIZES = ("tokens", "heads", "groups")
PASSES = ("forward", "forward+backward")
COUNTED_CHUNK = 64


def implementations() -> list[str]:
    return list(api._slot_attention.implementations)


def flops(shape: Shape, passes: str) -> float:
    """Returns the matrix FLOP, see above."""
    H, M, C = shape.head_size, shape.slots, COUNTED_CHUNK
    forward = shape.heads * 4 * (C * H + M * H + C * M) + shape.kv_heads * 4 * M * H
    a_query = 10 * (C * H + M * H) + 12 * C * M
    backward = shape.heads * a_query + shape.kv_heads * 8 * M * H
    return float(shape.tokens * (forward + backward * (passes != "forward")))


def least_bytes(shape: Shape, passes: str) -> float:
    """Returns the traffic with device memory that no implementation can avoid, see above."""
    H, M = shape.head_size, shape.slots
    forward = shape.heads * (4 * H + 4) + shape.kv_heads * (4 * H + 4 * M)
    backward = shape.heads * (6 * H + 8) + shape.kv_heads * (8 * H + 8 * M)
    return float(shape.tokens * (forward + backward * (passes != "forward")))


def program_inputs(shape: Shape, passes: str) -> tuple:
    """Returns `inputs` with heads side by side."""
    return tuple(map(side_by_side, inputs(shape, passes)))


def forward(implementation, shape: Shape, q, k, v, log_forget):
    """Returns output, log-sum-exp, and the slots after the last token."""
    heads = lambda x: x.reshape(*x.shape[:2], -1, shape.head_size)
    out, lse, state = api.slot_attention(
        *map(heads, (q, k, v)),
        log_forget.reshape(*log_forget.shape[:2], -1, shape.slots),
        shift=shape.shift,
        kv_head_of_query=shape.kv_head_of_query,
        implementation=implementation,
    )
    return side_by_side(out), lse, state[:2]


def forward_backward(implementation, shape: Shape, q, k, v, log_forget, *cotangents):
    """Returns the results, and the gradients of every argument through output and log-sum-exp."""
    run = functools.partial(forward, implementation, shape)
    (out, lse, slots), pull = jax.vjp(run, q, k, v, log_forget)
    return out, lse, slots, pull((*cotangents, jax.tree.map(jnp.zeros_like, slots)))


def inputs(shape: Shape, passes: str) -> tuple:
    """Makes random arguments: normalised queries and keys, gates as a model begins with."""
    keys = jax.random.split(jax.random.key(0), 6)
    T, N, K, H = shape.tokens, shape.heads, shape.kv_heads, shape.head_size
    draw = lambda key, *sizes: jax.random.normal(key, (1, T, *sizes), jnp.bfloat16)
    logits = jax.random.normal(keys[3], (1, T, K, shape.slots), jnp.float32)
    arrays = draw(keys[0], N, H), draw(keys[1], K, H), draw(keys[2], K, H)
    arrays = (*arrays, jax.nn.log_sigmoid(logits) / 8)
    if passes == "forward":
        return arrays
    return *arrays, draw(keys[4], N, H), jax.random.normal(keys[5], (1, T, N), jnp.float32)
