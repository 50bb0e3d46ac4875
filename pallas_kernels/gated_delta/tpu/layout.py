"""Says how the TPU kernels' arrays are cut into blocks, and what their grid is."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated_delta.tpu.blocks import CHUNK, Blocks

VMEM_BYTES = 60 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Cuts arrays with heads side by side for the grid (batch, block of heads, step along time).

    Attributes:
      reverse: steps run from the end of the sequence to its start.
    """

    blocks: Blocks
    reverse: bool
    length: int
    value_heads: int
    H: int
    P: int

    @property
    def programs(self) -> int:
        return self.value_heads // self.blocks.heads

    @property
    def steps(self) -> int:
        return self.length // self.blocks.tokens

    def grid(self, batch: int) -> tuple[int, int, int]:
        return batch, self.programs, self.steps

    def keys(self) -> pl.BlockSpec:
        """Returns the block spec of [B, T, K * H]; programs of one key head read the same block."""
        shared = self.blocks.programs_a_key_head
        return self._tokens(self.blocks.key_heads * self.H, lambda n: n // shared)

    def own_keys(self) -> pl.BlockSpec:
        """Returns the block spec of [B, T, programs * key heads * H].

        Each program writes there for its key heads.
        """
        return self._tokens(self.blocks.key_heads * self.H, lambda n: n)

    def values(self) -> pl.BlockSpec:
        """Returns the block spec of [B, T, N * P]."""
        return self._tokens(self.blocks.heads * self.P, lambda n: n)

    def gates(self) -> pl.BlockSpec:
        """Returns the block spec of [B, N / heads, heads, T]."""
        shape = (1, 1, self.blocks.heads, self.blocks.tokens)
        return pl.BlockSpec(shape, lambda b, n, t: (b, n, 0, self._time(t)))

    def state(self) -> pl.BlockSpec:
        """Returns the block spec of [B, N, H, P], one block for all steps."""
        shape = (1, self.blocks.heads, self.H, self.P)
        return pl.BlockSpec(shape, lambda b, n, t: (b, n, 0, 0))

    def states(self) -> pl.BlockSpec:
        """Returns the block spec of [B, N, chunks, H, P]."""
        shape = (1, self.blocks.heads, self.blocks.pieces, self.H, self.P)
        return pl.BlockSpec(shape, lambda b, n, t: (b, n, self._time(t), 0, 0))

    def inverses(self, parts: int) -> pl.BlockSpec:
        """Returns the block spec of [B, N, T, parts * C], the parts of a factor side by side."""
        shape = (1, self.blocks.heads, self.blocks.tokens, parts * CHUNK)
        return pl.BlockSpec(shape, lambda b, n, t: (b, n, self._time(t), 0))

    def carry(self):
        """Returns the scratch memory that carries each head's state from one step to the next."""
        return pltpu.VMEM((self.blocks.heads, self.H, self.P), jnp.float32)

    def compiler_params(self) -> pltpu.CompilerParams:
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        )

    def _tokens(self, width: int, block_of_program) -> pl.BlockSpec:
        shape = (1, self.blocks.tokens, width)
        return pl.BlockSpec(shape, lambda b, n, t: (b, self._time(t), block_of_program(n)))

    def _time(self, t):
        return self.steps - 1 - t if self.reverse else t
