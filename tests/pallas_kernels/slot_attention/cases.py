"""Makes inputs of slot attention that every implementation is tried on."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.slot_attention.tpu.blocks import TpuBlocks
from tests.pallas_kernels.kit.cases import PADDED, Segments, segment_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Describes the shapes and the contents of one set of inputs.

    Attributes:
      length: number of tokens T.
      heads: KV head that each query head reads.
      kv_heads: number of KV heads K.
      gate: what the gate's logits are; "mixed" draws from the extremes. log_forget is
        logsigmoid(logit) / 8.
      state: whether slots and waiting positions hold something before the first token.
      blocks: blocks of the TPU kernels; their own choice if None.
    """

    name: str
    length: int = 96
    batch: int = 2
    heads: tuple[int, ...] = (0, 0, 1, 1)
    kv_heads: int = 2
    head_dim: int = 16
    slots: int = 8
    shift: int = 5
    gate: float | Literal["random", "mixed"] = "random"
    segments: Segments = "one"
    state: bool = True
    sinks: bool = True
    dtype: str = "float32"
    blocks: TpuBlocks | None = None

    @property
    def head_sizes(self) -> set[int]:
        return {self.head_dim}


class Inputs(NamedTuple):
    """Holds the arguments of `pallas_kernels.slot_attention` that are arrays."""

    q_BTNH: jax.Array
    k_BTKH: jax.Array
    v_BTKH: jax.Array
    log_forget_BTKM: jax.Array
    k_slots_BKMH: jax.Array
    v_slots_BKMH: jax.Array
    k_waiting_BWKH: jax.Array
    v_waiting_BWKH: jax.Array
    log_forget_waiting_BWKM: jax.Array
    waits_BW: jax.Array
    segment_ids_BT: jax.Array


LENGTHS = [Case(name=f"T={t}", length=t) for t in (1, 15, 16, 17, 257)]
SHIFTS = [Case(name=f"shift {w}", shift=w) for w in (0, 1, 16, 95, 96, 200)]
HEADS = [
    Case(name="empty state", state=False),
    Case(name="irregular heads, one without readers", heads=(2, 0, 0, 2, 0), kv_heads=3),
    Case(name="1 slot", slots=1),
    Case(name="no sinks", sinks=False, state=False),
    Case(name="no sinks, packed", sinks=False, state=False, segments="mixed"),
]
SEGMENTS = [Case(name=name, segments=name) for name in PADDED]
HOSTILE = [
    *(Case(name=f"gate {logit:g}", gate=logit) for logit in (0.0, -20.0, 1e3, -300.0)),
    Case(name="gate mixed", gate="mixed"),
    Case(name="gate mixed, packed", gate="mixed", segments="mixed"),
]
FORMS = [*SEGMENTS, *HOSTILE]  # one shape: an implementation compiles once for all of them
CASES = [*LENGTHS, *SHIFTS, *HEADS, *FORMS]


def wide(case: Case, size: int) -> Case:
    """Returns the case with heads that kernels take."""
    length = 200 if case.length == Case.length else case.length
    return dataclasses.replace(case, batch=1, head_dim=size, slots=64, length=length)


def wide_cases(size: int) -> list[Case]:
    """Returns the cases that every implementation is measured on, with heads of `size`."""
    return [wide(case, size) for case in (*LENGTHS, *SHIFTS, *HEADS, *FORMS)]


def make_inputs(case: Case) -> Inputs:
    """Makes the arrays of a case, the same every time."""
    rng = np.random.default_rng(list(case.name.encode()))
    B, T, K, N = case.batch, case.length, case.kv_heads, len(case.heads)
    H, M, W = case.head_dim, case.slots, case.shift
    low = lambda *shape: jnp.asarray(rng.normal(size=shape), case.dtype)
    slots = lambda: jnp.asarray(rng.normal(size=(B, K, M, H)) * case.state, jnp.float32)
    return Inputs(
        2 * low(B, T, N, H),
        low(B, T, K, H),
        low(B, T, K, H),
        _log_forget(case, rng, (B, T, K, M)),
        slots(),
        slots(),
        low(B, W, K, H),
        low(B, W, K, H),
        _log_forget(case, rng, (B, W, K, M)),
        jnp.asarray(rng.uniform(size=(B, W)) < 0.8 * case.state),
        jnp.asarray(segment_ids(case.segments, B, T), jnp.int32),
    )


def _log_forget(case: Case, rng, shape) -> jax.Array:
    logits = np.full(shape, case.gate) if isinstance(case.gate, float) else rng.normal(size=shape)
    if case.gate == "mixed":
        logits = rng.choice([0.0, 4.0, -20.0, 1e3, -1e3], p=[0.4, 0.3, 0.1, 0.1, 0.1], size=shape)
    return jnp.asarray(-np.logaddexp(0.0, -logits) / 8, jnp.float32)
