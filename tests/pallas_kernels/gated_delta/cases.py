"""Makes inputs of the gated delta rule that every implementation is tried on."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.pallas_kernels.kit.cases import PADDED, Segments, segment_ids

Keys = Literal["random", "identical", "identical, rounded", "cosine 0.9", "zero"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Describes the shapes and the contents of one set of inputs.

    Attributes:
      length: number of tokens T.
      key_heads: number of key heads K.
      value_heads: number of value heads N.
      key_dim: key size H.
      value_dim: value size P.
      keys: how alike the keys are, all of unit length or zero. "identical" ones are exactly of
        unit length in every dtype, "identical, rounded" only as far as rounding goes.
      beta: write strength of every token; random in (0, 1) if None.
      log_decay: log decay of every token; "random" as a model has it, "mixed" draws from the
        extremes.
      segments: how documents and padding lie in a row.
      state: whether the initial state is random, not zero.
    """

    name: str
    length: int = 96
    batch: int = 2
    key_heads: int = 2
    value_heads: int = 4
    key_dim: int = 16
    value_dim: int = 8
    keys: Keys = "random"
    beta: float | None = None
    log_decay: float | Literal["random", "mixed"] = "random"
    segments: Segments = "one"
    state: bool = True
    dtype: str = "float32"

    @property
    def head_sizes(self) -> set[int]:
        return {self.key_dim, self.value_dim}


class Inputs(NamedTuple):
    """Holds the arguments of `pallas_kernels.gated_delta` that are arrays."""

    q_BTKH: jax.Array
    k_BTKH: jax.Array
    v_BTNP: jax.Array
    log_decay_BTN: jax.Array
    beta_BTN: jax.Array
    state_BNHP: jax.Array
    segment_ids_BT: jax.Array


LENGTHS = [Case(name=f"T={t}", length=t) for t in (1, 63, 64, 65, 257, 1000)]
HEADS = [
    Case(name="zero state", state=False),
    Case(name="1 value head a key head, H = P", value_heads=2, value_dim=16),
    Case(name="4 value heads a key head, H < P", key_heads=1, key_dim=8, value_dim=24),
]
SEGMENTS = [Case(name=name, segments=name) for name in PADDED]
HOSTILE = [
    Case(name="identical keys, beta 1", keys="identical", beta=1.0, log_decay=0.0),
    Case(name="identical keys, beta 2", keys="identical", beta=2.0, log_decay=0.0),
    Case(name="identical keys, beta 2, decay", keys="identical", beta=2.0),
    Case(name="cosine 0.9, beta 0.9", keys="cosine 0.9", beta=0.9, log_decay=0.0),
    Case(name="cosine 0.9, beta 2", keys="cosine 0.9", beta=2.0, log_decay=0.0),
    Case(name="log-decay 0", log_decay=0.0),
    Case(name="log-decay -20", log_decay=-20.0),
    Case(name="log-decay -1e4", log_decay=-1e4),
    Case(name="log-decay mixed", log_decay="mixed"),
    Case(name="log-decay mixed, packed", log_decay="mixed", segments="mixed"),
    Case(name="zero keys", keys="zero"),
]
FORMS = [*SEGMENTS, *HOSTILE]  # one shape: an implementation compiles once for all of them
CASES = [*LENGTHS, *HEADS, *FORMS]


def wide(case: Case, size: int) -> Case:
    """Returns the case with heads that kernels take, long enough to cross a kernel's chunk."""
    return dataclasses.replace(
        case,
        length=200 if case.length == Case.length else case.length,
        batch=1,
        key_heads=1,
        value_heads=2,
        key_dim=size,
        value_dim=size,
    )


def wide_cases(size: int) -> list[Case]:
    """Returns the cases that every implementation is measured on, with heads of `size`."""
    plain = wide(Case(name="random"), size)
    groups = [(2, 2), (2, 4), (1, 4)]
    sizes = [(64, 64), (128, 128), (256, 256), (64, 128)]
    return [
        *(wide(case, size) for case in (*LENGTHS, HEADS[0], *FORMS)),
        *(
            dataclasses.replace(plain, name=f"K={K}, N={N}", key_heads=K, value_heads=N)
            for K, N in groups
        ),
        *(
            dataclasses.replace(plain, name=f"H={H}, P={P}", key_dim=H, value_dim=P)
            for H, P in sizes
        ),
    ]


def make_inputs(case: Case) -> Inputs:
    """Makes the arrays of a case, the same every time."""
    rng = np.random.default_rng(list(case.name.encode()))
    B, T, K, N = case.batch, case.length, case.key_heads, case.value_heads
    H, P = case.key_dim, case.value_dim
    q_BTKH = _unit(rng.normal(size=(B, T, K, H)))
    v_BTNP = rng.normal(size=(B, T, N, P))
    beta_BTN = rng.uniform(size=(B, T, N)) if case.beta is None else np.full((B, T, N), case.beta)
    state_BNHP = rng.normal(size=(B, N, H, P)) * case.state
    low = jnp.dtype(case.dtype)
    return Inputs(
        jnp.asarray(q_BTKH, low),
        jnp.asarray(_keys(case, rng), low),
        jnp.asarray(v_BTNP, low),
        jnp.asarray(_log_decay(case, rng), jnp.float32),
        jnp.asarray(beta_BTN, jnp.float32),
        jnp.asarray(state_BNHP, jnp.float32),
        jnp.asarray(segment_ids(case.segments, B, T), jnp.int32),
    )


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _keys(case: Case, rng) -> np.ndarray:
    B, T, K, H = case.batch, case.length, case.key_heads, case.key_dim
    if case.keys == "zero":
        return np.zeros((B, T, K, H))
    if case.keys == "random":
        return _unit(rng.normal(size=(B, T, K, H)))
    common = _unit(rng.normal(size=(B, 1, K, H)))
    if case.keys == "identical, rounded":
        return np.broadcast_to(common, (B, T, K, H))
    if case.keys == "identical":
        return np.broadcast_to(_signs(common), (B, T, K, H))
    other = rng.normal(size=(B, T, K, H))
    other = _unit(other - np.sum(other * common, axis=-1, keepdims=True) * common)
    return np.sqrt(0.9) * common + np.sqrt(0.1) * other


def _signs(x):
    """Returns +-1/r in r^2 places, r a power of two, so that the length is 1 in any dtype."""
    root = 2 ** (int(np.log2(x.shape[-1])) // 2)
    return np.where(np.arange(x.shape[-1]) < root**2, np.sign(x) / root, 0.0)


def _log_decay(case: Case, rng) -> np.ndarray:
    shape = (case.batch, case.length, case.value_heads)
    if case.log_decay == "random":
        return -np.exp(rng.normal(size=shape) * 2 - 3)
    if case.log_decay == "mixed":
        return rng.choice(
            [0.0, -1e-3, -0.5, -20.0, -1e4], p=[0.4, 0.4, 0.15, 0.03, 0.02], size=shape
        )
    return np.full(shape, case.log_decay)
