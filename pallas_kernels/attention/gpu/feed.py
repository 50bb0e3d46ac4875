"""A ring of blocks in shared memory, filled by one warpgroup and read by the others."""

from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.hopper import blocks


class Feed(NamedTuple):
    """Buffers whose leading axis is the stage, and what says whether a stage is full or empty.

    Turns follow each other, the same ones in all warpgroups, and each takes the next stage.
    """

    buffers: tuple[jax.Ref, ...]
    full: jax.Ref
    empty: jax.Ref

    def fill(self, turn, *sources, first=0) -> None:
        """Starts the copies of a turn, once all readers are done with what they overwrite.

        Args:
          sources: for each buffer its source, or of a buffer in parts a list.
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
        """The buffers of a turn, full."""
        self.wait(turn)
        return self.at(turn)

    def wait(self, turn) -> None:
        plgpu.barrier_wait(self.full.at[self._stage(turn)])

    def at(self, turn) -> tuple:
        """The buffers of a turn that was waited for."""
        return tuple(buffer.at[self._stage(turn)] for buffer in self.buffers)

    def release(self, turn, *, interpret: bool) -> None:
        """Says that this warpgroup has read them.

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
    """The scratch types of a feed, from those of its buffers.

    Args:
      copies: that fill a stage; one a buffer if None.
    """
    stages = buffers[0].shape[0]
    return Feed(
        buffers,
        full=plgpu.Barrier(num_arrivals=copies or len(buffers), num_barriers=stages),
        empty=plgpu.Barrier(num_arrivals=readers, num_barriers=stages),
    )
