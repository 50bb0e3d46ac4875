"""Tells the report of the gated delta rule: programs and least work.

FLOP and bytes a token and value head, a multiply-add being 2 FLOP, chunk C, keys H, values P, r
value heads a key head. Each product of the chunked form is counted once and in full:

    forward    keys and queries against the state, state update     6 H P
               key pairs and query pairs (4 C H), times values      4 C P
               the inverse                                          2/3 C^2
    backward   the same products differentiated, the inverse twice  14 H P + 10 C (H + P) + 4 C^2
               states recomputed                                    4 H P + 2 C P

    forward    q, k read (4 H / r), v read, out written (4 P), gates (8)
    backward   q, k read, dq, dk written (8 H / r), v, dout read, dv written (6 P), gates (16)

C is 64 whatever an implementation chooses, so that no one looks better by doing more; the state's
own 4 H P bytes a sequence are left out.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta import api
from pallas_kernels.gated_delta.shapes import Shape, shapes
from pallas_kernels.report.programs import chips_worth_a_row, known, side_by_side

__all__ = ["chips_worth_a_row", "known", "shapes"]

SIZES = ("tokens", "heads", "groups")
PASSES = ("forward", "forward+backward")
COUNTED_CHUNK = 64


def implementations() -> list[str]:
    return list(api._gated_delta.implementations)


def flops(shape: Shape, passes: str) -> float:
    """Returns the matrix FLOP, see above."""
    H = P = shape.head_size
    C = COUNTED_CHUNK
    forward = 6 * H * P + 4 * C * (H + P) + 2 * C**2 / 3
    backward = 18 * H * P + 10 * C * (H + P) + 2 * C * P + 4 * C**2
    return shape.units * (forward + backward * (passes != "forward"))


def least_bytes(shape: Shape, passes: str) -> float:
    """Returns the traffic with device memory that no implementation can avoid, see above."""
    H = P = shape.head_size
    group = shape.heads // shape.key_heads
    forward = 4 * H / group + 4 * P + 8
    backward = 8 * H / group + 6 * P + 16
    return shape.units * (forward + backward * (passes != "forward"))


def program_inputs(shape: Shape, passes: str) -> tuple:
    """Returns `inputs` with heads side by side."""
    return tuple(map(side_by_side, inputs(shape, passes)))


def forward(implementation, shape: Shape, q, k, v, log_decay, beta):
    heads = lambda x: x.reshape(*x.shape[:2], -1, shape.head_size)
    out, state = api.gated_delta(
        heads(q), heads(k), heads(v), log_decay, beta, implementation=implementation
    )
    return side_by_side(out), state


def forward_backward(implementation, shape: Shape, q, k, v, log_decay, beta, out_cotangent):
    """Returns output, final state, and the gradients of every argument through the output."""
    (out, state), pull = jax.vjp(
        functools.partial(forward, implementation, shape), q, k, v, log_decay, beta
    )
    return out, state, pull((out_cotangent, jnp.zeros_like(state)))


def inputs(shape: Shape, passes: str) -> tuple:
    """Makes random arguments: unit queries and keys, gates as a model has them."""
    keys = jax.random.split(jax.random.key(0), 6)
    T, N, K, H = shape.tokens, shape.heads, shape.key_heads, shape.head_size
    draw = lambda key, heads: jax.random.normal(key, (1, T, heads, H), jnp.float32)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    arrays = (
        unit(draw(keys[0], K)).astype(jnp.bfloat16),
        unit(draw(keys[1], K)).astype(jnp.bfloat16),
        draw(keys[2], N).astype(jnp.bfloat16),
        -jnp.exp(2 * jax.random.normal(keys[3], (1, T, N)) - 3),
        jax.random.uniform(keys[4], (1, T, N)),
    )
    return arrays if passes == "forward" else (*arrays, draw(keys[5], N).astype(jnp.bfloat16))
