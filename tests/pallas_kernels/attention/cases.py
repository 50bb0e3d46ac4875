"""Makes inputs of softmax attention that every implementation is tried on."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.pallas_kernels.kit.cases import PADDED, segment_ids
from tests.pallas_kernels.kit.cases import Segments as Documents

Segments = Documents | Literal["none", "strangers"]
Logits = Literal["random", "+-1e4", "one at 1e4", "one at -1e4", "all near -1e4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Describes the shapes and the contents of one set of inputs.

    Attributes:
      length: number of queries T.
      keys: number of keys S; T if None.
      kv_heads: number of KV heads K.
      kv_head_of_query: as in `attention`, of length N.
      head_dim: head size H.
      q_start: as in `attention`.
      traced: whether q_start is traced, not an int.
      segments: how documents and padding lie in a row; "none" passes no ids at all. Queries have
        the ids of the keys at their positions; "strangers" have ids that no key has, in half a row.
      logits: kind of the scaled scores. Where they are large they are also exact in float32, or so
        far apart that their rounding does not matter.
      scale: as in `attention`.
    """

    name: str
    length: int = 160
    keys: int | None = None
    batch: int = 2
    kv_heads: int = 2
    kv_head_of_query: tuple[int, ...] = (0, 1, 1)
    head_dim: int = 16
    causal: bool = True
    window: int | None = None
    q_start: int = 0
    traced: bool = False
    segments: Segments = "none"
    logits: Logits = "random"
    scale: float | None = None
    dtype: str = "float32"

    @property
    def S(self) -> int:
        return self.length if self.keys is None else self.keys

    @property
    def head_sizes(self) -> set[int]:
        return {self.head_dim}


class Inputs(NamedTuple):
    """Holds the arguments of `pallas_kernels.attention` that may be arrays."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    q_start: jax.Array
    segment_ids_BT: jax.Array | None
    kv_segment_ids_BS: jax.Array | None


_CHUNK = dict(length=70, keys=160)  # of a prompt, or a step of a ring
LENGTHS = [Case(name=f"T={t}", length=t) for t in (1, 127, 128, 129, 1000)]
STARTS = [
    Case(name="start in the middle", q_start=45, **_CHUNK),
    Case(name="start in the middle, traced", q_start=45, traced=True, **_CHUNK),
    Case(name="start before the keys, traced", q_start=-30, traced=True, **_CHUNK),
    Case(name="start after the keys, traced", q_start=200, traced=True, **_CHUNK),
    Case(name="all before the keys, traced", q_start=-100, traced=True, **_CHUNK),
    Case(name="window 64, start near the end", q_start=150, window=64, **_CHUNK),
    Case(name="packed, start in the middle", q_start=45, segments="packed", **_CHUNK),
    Case(name="more queries than keys", length=160, keys=70, q_start=-20),
]
VISIBILITY = [
    Case(name="not causal", causal=False),
    Case(name="not causal, packed", causal=False, segments="packed"),
    Case(name="not causal, T != S", causal=False, q_start=45, **_CHUNK),
    *(Case(name=f"window {w}", window=w) for w in (1, 64, 160)),
    Case(name="window 64, packed", window=64, segments="packed"),
]
HEADS = [
    Case(name="heads (0, 0, 0)", kv_heads=1, kv_head_of_query=(0, 0, 0)),
    Case(name="heads (0, 2, 2, 3), one unread", kv_heads=4, kv_head_of_query=(0, 2, 2, 3)),
    Case(name="heads (1, 0, 1)", kv_head_of_query=(1, 0, 1)),
    Case(name="heads (0, 0, 1, 1)", kv_head_of_query=(0, 0, 1, 1)),
]
SCALES = [Case(name=f"scale {x}", scale=x) for x in (0.5, -0.3, 0.0)]
SEGMENTS = [Case(name=name, segments=name) for name in (*PADDED, "strangers")]
LOGITS = [
    Case(name="logits +-1e4", logits="+-1e4", segments="one"),
    Case(name="one logit at 1e4", logits="one at 1e4", segments="one"),
    Case(name="one logit at -1e4", logits="one at -1e4", segments="one"),
    Case(name="logits near -1e4", logits="all near -1e4", segments="one", scale=0.125),
]
FORMS = [*SEGMENTS, *LOGITS]  # one shape: an implementation compiles once or twice for all of them
CASES = [*LENGTHS, *STARTS, *VISIBILITY, *HEADS, *SCALES, *FORMS]


def wide(case: Case, size: int) -> Case:
    """Returns the case with one row, and heads of a size that kernels take."""
    return dataclasses.replace(case, batch=1, head_dim=size)


def wide_cases(size: int) -> list[Case]:
    """Returns the cases that every implementation is measured on, with heads of `size`."""
    sizes = [Case(name=f"H={size}", head_dim=size, batch=1) for size in (64, 128, 256)]
    return [*(wide(case, size) for case in CASES), *sizes]


def make_inputs(case: Case) -> Inputs:
    """Makes the arrays of a case, the same every time."""
    rng = np.random.default_rng(list(case.name.encode()))
    B, T, S, H = case.batch, case.length, case.S, case.head_dim
    q_BTNH, k_BSKH = _queries_and_keys(
        case, rng, (B, T, len(case.kv_head_of_query), H), (B, S, case.kv_heads, H)
    )
    v_BSKH = rng.normal(size=k_BSKH.shape)
    low = jnp.dtype(case.dtype)
    ids = (None, None)
    if case.segments != "none":
        ids = (jnp.asarray(x, jnp.int32) for x in _segments(case))
    start = jnp.asarray(case.q_start, jnp.int32)
    return Inputs(*(jnp.asarray(x, low) for x in (q_BTNH, k_BSKH, v_BSKH)), start, *ids)


def _segments(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of queries [B, T] and keys [B, S]."""
    kind = "packed" if case.segments == "strangers" else case.segments
    keys_BS = segment_ids(kind, case.batch, case.S)
    columns_T = np.clip(case.q_start + np.arange(case.length), 0, case.S - 1)
    queries_BT = keys_BS[:, columns_T]
    if case.segments == "strangers":
        queries_BT[:, case.length // 4 : 3 * case.length // 4] = 7
    return queries_BT, keys_BS


def _queries_and_keys(case: Case, rng, q_shape, k_shape):
    if case.logits == "+-1e4":
        return tuple(100.0 * rng.choice([-1, 1], size=shape) for shape in (q_shape, k_shape))
    if case.logits == "all near -1e4":
        q, k = rng.integers(-2, 3, size=q_shape) * 1.0, rng.integers(-2, 3, size=k_shape) / 2
        q[..., 0], k[..., 0] = -256, 1e4 // (256 * case.scale)
        return q, k
    q, k = rng.normal(size=q_shape), rng.normal(size=k_shape)
    if case.logits != "random":
        one = {"one at 1e4": 1e4, "one at -1e4": -1e4}[case.logits]
        q[..., 0], k[..., 0] = 32, 0
        k[:, case.S // 4, :, 0] = one * np.sqrt(case.head_dim) / 32
    return q, k
