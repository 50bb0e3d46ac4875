"""Chooses how the decode kernel reads a cache, and how much of it in one step."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu.blocks import LANES
from pallas_kernels.tpu_devices import TWO_CORES

BLOCK_BYTES = 2 << 20
SUBLANES = 8

Form = Literal["rows", "heads", "columns"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuDecodeBlocks:
    """Says what one program of the decode kernel takes.

    Attributes:
      keys: positions of a step.
      form: how the cache is seen. "rows": [S * K, H], and a step has all KV heads of its positions
        and all query heads. "heads": [K, S, H], and "columns": [K, H, S]; there a program has one
        KV head and the query heads that read it.
      splits: programs that share the positions of a row.
    """

    keys: int
    form: Form
    splits: int = 1

    def __post_init__(self):
        if self.keys < 1 or self.splits < 1:
            raise ValueError(f"keys={self.keys} and splits={self.splits} must be positive")


def choose_decode_blocks(problem: Problem, batch: int, device_kind: str) -> TpuDecodeBlocks:
    """Chooses steps long enough to hide their latency, and two programs for two cores."""
    form = choose_form(problem.K, problem.H)
    programs = batch * (1 if form == "rows" else len(set(problem.kv_head_of_query)))
    itemsize = jnp.dtype(problem.dtype).itemsize
    key_bytes = (problem.K if form == "rows" else 1) * problem.H * itemsize
    keys = max(LANES, BLOCK_BYTES // key_bytes // LANES * LANES)
    return TpuDecodeBlocks(
        keys=min(keys, problem.S),
        form=form,
        splits=2 if programs == 1 and device_kind in TWO_CORES else 1,
    )


def choose_form(K: int, H: int) -> Form:
    """Returns the form in which XLA stores an array [B, S, K, H] by default, so nothing is copied.

    XLA fills complete tiles: of [K, H] if it can, else of [S, H] or, with narrow heads, of [H, S].
    With K = 4 and H = 256 none of the three is what it stores.
    """
    if H < LANES:
        return "columns"
    whole_tiles = K > 1 and K & (K - 1) == 0 and (H == LANES or K % SUBLANES == 0)
    return "rows" if whole_tiles else "heads"
