"""Tells the report of softmax attention: production shapes, programs and least work.

FLOP per query head, a multiply-add being 2 FLOP, for each pair of a query and a key that it sees:

    forward    Q K^T, P V                                4 H
    backward   Q K^T again, dO V^T, P^T dO, dS K, dS^T Q 10 H

Bytes: each array once, KV heads that are read only.

    forward    q, k, v read; out and log-sum-exp written
    backward   q, k, v, out, dout, log-sum-exp read; dq, dk, dv written
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.attention import api
from pallas_kernels.attention.visibility import Visibility
from pallas_kernels.hardware.bundles import Known
from pallas_kernels.report import attention_schedules, tokamax_splash

SIZES = ("tokens", "heads", "groups", "window")
PASSES = ("forward", "forward+backward")
TOKENS = (8192, 32768)
HEADS = 16
SOME_OF_16 = (0, 0, 2, 5)  # KV heads, two query heads each, that 4 of 16 query heads read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Says the sizes of causal bf16 attention of one sequence to itself.

    Attributes:
      kv_head_of_query: as in `attention`.
      kv_heads: K, with those that no query head reads.
    """

    tokens: int
    kv_head_of_query: tuple[int, ...]
    kv_heads: int
    head_size: int = 128
    window: int | None = None

    @property
    def heads(self) -> int:
        return len(self.kv_head_of_query)

    @property
    def read_heads(self) -> int:
        return len(set(self.kv_head_of_query))

    @property
    def units(self) -> int:
        return self.tokens * self.heads

    @property
    def visibility(self) -> Visibility:
        return Visibility(causal=True, window=self.window)

    def __str__(self) -> str:
        regular = self == regular_shape(
            self.tokens, self.heads, self.kv_heads, head_size=self.head_size, window=self.window
        )
        heads = f"N{self.heads}" + (f" K{self.kv_heads}" if self.kv_heads != self.heads else "")
        if not regular:
            heads += " (" + ",".join(map(str, self.kv_head_of_query)) + ")"
        return f"T{self.tokens} {heads} H{self.head_size}" + (
            f" W{self.window}" if self.window else ""
        )


def regular_shape(tokens: int, heads: int, kv_heads: int, **others) -> Shape:
    """Makes a shape whose query head n reads KV head n // (heads / kv_heads)."""
    group = max(1, heads // kv_heads)
    heads_map = tuple(n // group for n in range(heads))
    return Shape(tokens=tokens, kv_head_of_query=heads_map, kv_heads=kv_heads, **others)


def shapes(
    tokens: Sequence[int] = TOKENS,
    heads: Sequence[int] | None = None,
    groups: Sequence[int] = (1,),
    window: Sequence[int | None] = (None,),
) -> list[Shape]:
    """Returns every combination of regular heads; without `heads` 16, and 4 irregular ones of 16.

    Args:
      groups: query heads per KV head.
    """
    regular = [
        regular_shape(length, count, count // group, window=width)
        for width in window
        for group in groups
        for length in tokens
        for count in heads or (HEADS,)
    ]
    irregular = [
        Shape(tokens=length, kv_head_of_query=SOME_OF_16, kv_heads=HEADS // 2, window=width)
        for width in window
        for length in tokens
    ]
    return regular if heads or groups != (1,) else regular + irregular


def implementations() -> list[str]:
    others = ["tokamax splash"] if importlib.util.find_spec("tokamax") else []
    return [*api._attention.implementations, *others]


def chips_worth_a_row(implementation: str) -> tuple[str, ...]:
    """Returns the chips for which `--all-targets` compiles an implementation.

    Kernels where they run, plain JAX on one TPU and on the GPU, the reference nowhere. cuDNN makes
    its code on the GPU itself.
    """
    tpus = ("v5e", "v5p", "v6e", "tpu7x")
    known = {"tpu": tpus, "splash": tpus, "tokamax splash": ("v6e",), "gpu": ("h200",)}
    known |= {"reference": (), "cudnn": ()}
    return known.get(implementation, ("v6e", "h200"))


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


def program(shape: Shape, implementation: str, passes: str):
    """Returns a function that other processes can import, and the shapes of its arguments.

    Inputs and outputs have heads side by side, [1, T, N * H], as the projections around the op
    write and read them: a TPU would have to copy [1, T, N, H] into that order, which no model asks
    of it.
    """
    run = forward if passes == "forward" else forward_backward
    arguments = jax.eval_shape(functools.partial(program_inputs, shape, passes))
    return functools.partial(run, implementation, shape), arguments


def program_inputs(shape: Shape, passes: str) -> tuple:
    """Returns `inputs` with heads side by side."""
    return tuple(map(_side_by_side, inputs(shape, passes)))


def forward(implementation, shape: Shape, q, k, v):
    """Returns the output, and log-sum-exp from those that give it."""
    heads = (x.reshape(*x.shape[:2], -1, shape.head_size) for x in (q, k, v))
    if implementation == "tokamax splash":
        return _side_by_side(tokamax_splash.attend(shape, *heads))
    out, lse = api.attention(
        *heads,
        kv_head_of_query=shape.kv_head_of_query,
        window=shape.window,
        return_lse=True,
        implementation=implementation,
    )
    return _side_by_side(out), lse


def forward_backward(implementation, shape: Shape, q, k, v, out_cotangent):
    """Returns the output, and the gradients of every argument through it."""
    only_out = lambda *x: jax.tree.leaves(forward(implementation, shape, *x))[0]
    out, pull = jax.vjp(only_out, q, k, v)
    return out, pull(out_cotangent)


def _side_by_side(x):
    return x.reshape(*x.shape[:2], -1)


def inputs(shape: Shape, passes: str) -> tuple:
    """Makes random arguments."""
    keys = jax.random.split(jax.random.key(0), 4)
    T, N, K, H = shape.tokens, shape.heads, shape.kv_heads, shape.head_size
    draw = lambda key, heads: jax.random.normal(key, (1, T, heads, H), jnp.bfloat16)
    arrays = draw(keys[0], N), draw(keys[1], K), draw(keys[2], K)
    return arrays if passes == "forward" else (*arrays, draw(keys[3], N))
