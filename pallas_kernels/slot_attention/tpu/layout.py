"""Says how the TPU kernels' arrays are cut into blocks, and what their grid is."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.slot_attention.tpu.blocks import Blocks

VMEM_BYTES = 60 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Cuts arrays with heads side by side for the grid (batch, block of heads, step along time).

    Attributes:
      reverse: steps run from the end of the sequence to its start.
      slots: slots M, filled up.
      used_slots: those that the caller has.
    """

    blocks: Blocks
    reverse: bool
    length: int
    kv_heads: int
    H: int
    slots: int
    used_slots: int

    @property
    def programs(self) -> int:
        return self.kv_heads // self.blocks.kv_heads

    @property
    def steps(self) -> int:
        return self.length // self.blocks.tokens

    def grid(self, batch: int) -> tuple[int, int, int]:
        return batch, self.programs, self.steps

    def queries(self) -> pl.BlockSpec:
        """Returns the block spec of [B, T, N * H]."""
        return self._tokens(self.blocks.kv_heads * self.blocks.readers * self.H)

    def keys(self) -> pl.BlockSpec:
        """Returns the block spec of [B, T, K * H]."""
        return self._tokens(self.blocks.kv_heads * self.H)

    def gates(self) -> pl.BlockSpec:
        """Returns the block spec of [B, K, M, T]."""
        shape = (1, self.blocks.kv_heads, self.slots, self.blocks.tokens)
        return pl.BlockSpec(shape, lambda b, n, t: (b, n, 0, self._time(t)))

    def marks(self) -> pl.BlockSpec:
        """Returns the block spec of [B, 2, T]."""
        return pl.BlockSpec((1, 2, self.blocks.tokens), lambda b, n, t: (b, 0, self._time(t)))

    def rows(self) -> pl.BlockSpec:
        """Returns the block spec of [B, programs, query heads of a program, T]."""
        shape = (1, 1, self.blocks.kv_heads * self.blocks.readers, self.blocks.tokens)
        return pl.BlockSpec(shape, lambda b, n, t: (b, n, 0, self._time(t)))

    def slot_states(self) -> pl.BlockSpec:
        """Returns the block spec of [B, K, M, 2 * H], one block for all steps."""
        shape = (1, self.blocks.kv_heads, self.slots, 2 * self.H)
        return pl.BlockSpec(shape, lambda b, n, t: (b, n, 0, 0))

    def entries(self) -> pl.BlockSpec:
        """Returns the block spec of [B, K, chunks, M, 2 * H]."""
        shape = (1, self.blocks.kv_heads, self.blocks.pieces, self.slots, 2 * self.H)
        return pl.BlockSpec(shape, lambda b, n, t: (b, n, self._time(t), 0, 0))

    def constant(self, array) -> pl.BlockSpec:
        """Returns the block spec of an array that every program reads whole."""
        return pl.BlockSpec(array.shape, lambda b, n, t: (0,) * array.ndim)

    def carry(self):
        """Returns the scratch memory that carries slots, or their gradients, between steps."""
        return pltpu.VMEM((self.blocks.kv_heads, self.slots, 2 * self.H), jnp.float32)

    def compiler_params(self) -> pltpu.CompilerParams:
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        )

    def _tokens(self, width: int) -> pl.BlockSpec:
        shape = (1, self.blocks.tokens, width)
        return pl.BlockSpec(shape, lambda b, n, t: (b, self._time(t), n))

    def _time(self, t):
        return self.steps - 1 - t if self.reverse else t
