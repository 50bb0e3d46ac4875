"""Tells the report of softmax attention: programs and least work.

FLOP per query head, a multiply-add being 2 FLOP, for each pair of a query and a key that it sees:

    forward    Q K^T, P V                                4 H
    backward   Q K^T again, dO V^T, P^T dO, dS K, dS^T Q 10 H

Bytes: each array once, KV heads that are read only.

    forward    q, k, v read; out and log-sum-exp written
    backward   q, k, v, out, dout, log-sum-exp read; dq, dk, dv written
"""

import importlib.util
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.attention import api
from pallas_kernels.attention.shapes import HEADS, Shape, irregular_shapes
from pallas_kernels.attention.shapes import shapes as regular_shapes
from pallas_kernels.hardware.bundles import Known
from pallas_kernels.report import attention_schedules, programs, tokamax_splash

SIZES = ("tokens", "heads", "groups", "window")
PASSES = ("forward", "forward+backward")


def shapes(heads: Sequence[int] = (), groups: Sequence[int] = (1,), **sizes) -> list[Shape]:
    """Returns every combination of regular heads, and without `heads` 4 irregular ones of 16."""
    regular = regular_shapes(heads=heads or HEADS, groups=groups, **sizes)
    return regular if heads or groups != (1,) else regular + irregular_shapes(**sizes)


def implementations() -> list[str]:
    others = ["tokamax splash"] if importlib.util.find_spec("tokamax") else []
    return [*api._attention.implementations, *others]


def chips_worth_a_row(implementation: str) -> tuple[str, ...]:
    """Returns the chips of `programs.chips_worth_a_row`; cuDNN makes its code on the GPU itself."""
    others = {"splash": programs.TPUS, "tokamax splash": ("v6e",), "cudnn": ()}
    return programs.chips_worth_a_row(implementation, **others)


def seen_pairs(shape: Shape) -> int:
    """Counts the pairs of a query and a key that it sees, of one head."""
    width = min(shape.window or shape.tokens, shape.tokens)
    return width * (width + 1) // 2 + (shape.tokens - width) * width


def flops(shape: Shape, passes: str) -> float:
    """Returns the matrix FLOP, see above."""
    a_pair = 4 if passes == "forward" else 4 + 10
    return float(a_pair * shape.head_size * shape.heads * seen_pairs(shape))


def least_bytes(shape: Shape, passes: str) -> float:
    """Returns the traffic with device memory that no implementation can avoid, see above."""
    queries = 2 * shape.units * shape.head_size
    keys = 2 * shape.tokens * shape.read_heads * shape.head_size
    lse = 4 * shape.units
    forward = 2 * queries + 2 * keys + lse
    backward = 4 * queries + 4 * keys + lse
    return float(forward + backward * (passes != "forward"))


def known(shape: Shape, implementation: str, passes: str, chip: str) -> Mapping[str, Known]:
    """Returns what a kernel's schedule does not say: how often its steps do what."""
    of = {
        "tpu": attention_schedules.ours,
        "splash": attention_schedules.splash,
        "chunked": attention_schedules.chunked,
        "tokamax splash": tokamax_splash.known,
    }
    return of[implementation](shape, passes, chip) if implementation in of else {}


def program_inputs(shape: Shape, passes: str) -> tuple:
    """Returns `inputs` with heads side by side."""
    return tuple(map(programs.side_by_side, inputs(shape, passes)))


def forward(implementation, shape: Shape, q, k, v):
    """Returns the output, and log-sum-exp from those that give it."""
    heads = (x.reshape(*x.shape[:2], -1, shape.head_size) for x in (q, k, v))
    if implementation == "tokamax splash":
        return programs.side_by_side(tokamax_splash.attend(shape, *heads))
    out, lse = api.attention(
        *heads,
        kv_head_of_query=shape.kv_head_of_query,
        window=shape.window,
        return_lse=True,
        implementation=implementation,
    )
    return programs.side_by_side(out), lse


def forward_backward(implementation, shape: Shape, q, k, v, out_cotangent):
    """Returns the output, and the gradients of every argument through it."""
    only_out = lambda *x: jax.tree.leaves(forward(implementation, shape, *x))[0]
    out, pull = jax.vjp(only_out, q, k, v)
    return out, pull(out_cotangent)


def inputs(shape: Shape, passes: str) -> tuple:
    """Makes random arguments."""
    keys = jax.random.split(jax.random.key(0), 4)
    T, N, K, H = shape.tokens, shape.heads, shape.kv_heads, shape.head_size
    draw = lambda key, heads: jax.random.normal(key, (1, T, heads, H), jnp.bfloat16)
    arrays = draw(keys[0], N), draw(keys[1], K), draw(keys[2], K)
    return arrays if passes == "forward" else (*arrays, draw(keys[3], N))
