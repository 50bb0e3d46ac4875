"""Defines what all passes over scores share."""

import functools
import math
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu.blocks import COPY_REGISTERS
from pallas_kernels.attention.gpu.ranges import RANGE
from pallas_kernels.hopper.blocks import of_one_device, on_rows, registers

LOG2E = math.log2(math.e)
HIDDEN = 1e30  # log-sum-exp of a row that sees nothing: its weights are 0


class Saved(NamedTuple):
    """Carries float32 results of the forward, with T in complete tiles.

    Attributes:
      lse_BNT: log-sum-exp in powers of 2; `HIDDEN` for queries that see nothing.
      delta_BNT: row sums of P * dP, without what comes through the log-sum-exp.
    """

    lse_BNT: jax.Array
    delta_BNT: jax.Array


class Readers(NamedTuple):
    """Says which query heads read each KV head, int32.

    Attributes:
      first_X: KV head k is read by heads first_X[k] up to first_X[k + 1] of the order.
      order_N: query heads in order of their KV heads.
    """

    first_X: jax.Array
    order_N: jax.Array


def saved_of(lse_BTN, delta_BTN, tile: int) -> Saved:
    lse_BTN = jnp.where(jnp.isneginf(lse_BTN), HIDDEN, lse_BTN * LOG2E)
    filled = lambda x, value: jnp.pad(
        jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % tile)), constant_values=value
    )
    return Saved(filled(lse_BTN, HIDDEN), filled(delta_BTN, 0.0))


def readers_of(heads: tuple[int, ...], kv_heads: int) -> Readers:
    order = np.argsort(heads, kind="stable")
    first = np.searchsorted(np.sort(heads), np.arange(kv_heads + 1))
    return Readers(jnp.array(first, jnp.int32), jnp.array(order, jnp.int32))


def bounds(ranges_BIX, b, i):
    """Loads the entries of `ranges.block_ranges` for one tile."""
    return tuple(of_one_device(ranges_BIX[b, i, x]) for x in range(RANGE))


def readers_between(readers: Readers, kv_head):
    return tuple(of_one_device(readers.first_X[kv_head + x]) for x in (0, 1))


def through(bounds, first, step, state):
    """Runs `step(is_masked, block, state)` for the blocks of a range from `first` on."""
    _, clear, unclear, end = bounds
    for is_masked, begin, until in (
        (True, first, clear),
        (False, jnp.maximum(first, clear), unclear),
        (True, jnp.maximum(first, unclear), end),
    ):
        state = lax.fori_loop(begin, until, functools.partial(step, is_masked), state)
    return state


def bring_keys(k, v, feeds, heads, ranges, at, *, block: int) -> None:
    """Copies keys and values of a query tile's range, in the copying warpgroup of a program.

    Args:
      feeds: rings of keys and of values.
      at: batch row, query head, tile.
    """
    plgpu.set_max_registers(COPY_REGISTERS, action="decrease")
    b, n, i = at
    head, (start, *_, end) = heads[n], bounds(ranges, b, i)

    @pl.loop(start, end)
    def _(j):
        tokens = pl.ds(j * block, block)
        for source, feed in zip((k, v), feeds, strict=True):
            feed.fill(j, source.at[b, tokens, head], first=start)


def ahead(x, is_more, wait):
    """Returns `x` after a wait for the next block: the assembler moves nothing across it."""
    x = lax.optimization_barrier(x)
    pl.when(is_more)(wait)
    return x


def zeros(*shape, dtype=jnp.float32):
    return registers(jnp.zeros(shape, dtype))


def row(size: int, value: float):
    """Makes a float32 vector along the rows of an accumulator."""
    return plgpu.layout_cast(jnp.full((size,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))


def normalized(sum_RH, peak_R, total_R):
    """Returns output and natural log-sum-exp of rows; 0 and -inf for those that saw nothing."""
    seen_R = total_R > 0
    total_R = jnp.where(seen_R, total_R, 1.0)
    lse_R = jnp.where(seen_R, peak_R / LOG2E + jnp.log(total_R), -jnp.inf)
    return registers(sum_RH * on_rows(1 / total_R, sum_RH.shape)), lse_R


def weights(scores, lse, scale: float):
    """Returns the softmax weights exp2(score - lse)."""
    return registers(jnp.exp2(registers(scores * (scale * LOG2E) - lse)))


def anew(scalar):
    """Hides `scalar` from the optimiser.

    Otherwise the optimiser would keep every address that follows from it in a register through the
    loop.
    """
    return lax.optimization_barrier(scalar)
