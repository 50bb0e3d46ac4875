"""Keeps a ring of blocks in shared memory, filled by one warpgroup and read by the others."""

from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.hopper import blocks


class Feed(NamedTuple):
    """Passes blocks through buffers whose leading axis is the stage; barriers say full or empty.

    All warpgroups take the same turns in the same order, and each turn takes the next stage.
    """

    buffers: tuple[jax.Ref, ...]
    full: jax.Ref
    empty: jax.Ref

    def fill(self, turn, *sources, first=0) -> None:
        """Starts the copies of a turn, once all readers are done with what they overwrite.

        Args:
          sources: the source of each buffer, or for a buffer in parts a list of them.
          first: the first turn of all.
        """
        stage = self._stage(turn)

        @pl.when(turn - first >= self._stages)
        def _():
            plgpu.barrier_wait(self.empty.at[stage])

        for source, buffer in zip(sources, self.buffers, strict=True):
            target = buffer.at[stage]
            parts = enumerate(source) if isinstance(source, list) else [(..., source)]
            blocks.copy_in(self.full.at[stage], *((x, target.at[part]) for part, x in parts))

    def take(self, turn) -> tuple:
        """Waits until the buffers of a turn are full and returns them."""
        self.wait(turn)
        return self.at(turn)

    def wait(self, turn) -> None:
        plgpu.barrier_wait(self.full.at[self._stage(turn)])

    def at(self, turn) -> tuple:
        """Returns the buffers of a turn that was waited for."""
        return tuple(buffer.at[self._stage(turn)] for buffer in self.buffers)

    def release(self, turn, *, interpret: bool) -> None:
        """Says that this warpgroup has read the buffers of a turn.

        The interpreter reads them for a product as a thread would, not as tensor cores do, and
        wants that ordered before the next copy.
        """
        if interpret:
            plgpu.commit_smem()
        plgpu.barrier_arrive(self.empty.at[self._stage(turn)])

    @property
    def _stages(self) -> int:
        return self.buffers[0].shape[0]

    def _stage(self, turn):
        return lax.rem(turn, jnp.int32(self._stages))


def feed(*buffers, readers: int, copies: int | None = None) -> Feed:
    """Returns the scratch types of a feed, from those of its buffers.

    Args:
      copies: how many copies fill a stage; one per buffer if None.
    """
    stages = buffers[0].shape[0]
    return Feed(
        buffers,
        full=plgpu.Barrier(num_arrivals=copies or len(buffers), num_barriers=stages),
        empty=plgpu.Barrier(num_arrivals=readers, num_barriers=stages),
    )
