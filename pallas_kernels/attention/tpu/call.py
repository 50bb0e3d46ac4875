"""Defines what the forward and the backward kernel share: scalars, grid and block specs.

The grid is (batch row, group of query heads, head of the group, step). Groups may run on different
cores; within one, everything is in order.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu.blocks import LANES, VMEM_BYTES, Blocks
from pallas_kernels.attention.tpu.heads import Heads
from pallas_kernels.attention.tpu.mask import Mask
from pallas_kernels.attention.tpu.steps import Do, Step


class Scalars(NamedTuple):
    """Lists what lies in scalar memory, before the arrays; X is groups * heads of a group.

    Attributes:
      steps: the lists of all rows, one after the other.
      query_heads_X: the query head at each place of the grid.
      kv_heads_X: the KV head that it reads.
      slots_X: the place of that KV head among those that are read.
      starts_B: position of query 0 among the keys.
      part_1: which part of the keys the lists are for.
    """

    steps: jax.Array
    query_heads_X: jax.Array
    kv_heads_X: jax.Array
    slots_X: jax.Array
    starts_B: jax.Array
    part_1: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """Says what one kernel call computes.

    Attributes:
      problem: of positive scale.
      blocks: sizes of a step.
      heads: the grid's heads.
      kinds: what steps do with their blocks, if anything.
      part_blocks: key blocks of a part of the keys.
      steps: room in a list.
      own_lists: each batch row has a list of its own.
    """

    problem: Problem
    blocks: Blocks
    heads: Heads
    kinds: tuple[Do, ...]
    part_blocks: int
    steps: int
    own_lists: bool

    @property
    def H(self) -> int:
        """Returns the head dimension in complete lanes."""
        return self.problem.H + -self.problem.H % LANES

    def grid_spec(self, batch: int, length, inputs, outputs, scratch):
        """Makes the grid for lists of `length` steps, which may be known at run time only."""
        return pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(Scalars._fields),
            grid=(batch, self.heads.groups, self.heads.heads_a_group, length),
            in_specs=inputs,
            out_specs=outputs,
            scratch_shapes=scratch,
        )

    def compiler_params(self) -> pltpu.CompilerParams:
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        )

    def step(self, scalars: Scalars, b, t) -> Step:
        row = b if self.own_lists else 0
        return Step(scalars.steps[row * self.steps + t])

    def place(self, g, r):
        """Returns where the tables of heads have the grid's head."""
        return g * self.heads.heads_a_group + r

    def changes_kv_head(self, scalars: Scalars, g, r, way: int):
        """Says whether the KV head before (-1) or after (1) head `r` of group `g` is another."""
        edge = 0 if way < 0 else self.heads.heads_a_group - 1
        here = self.place(g, r)
        there = jnp.clip(here + way, 0, len(self.heads.slots) - 1)
        return (r == edge) | (scalars.slots_X[here] != scalars.slots_X[there])

    def mask(self, scalars: Scalars, b, step: Step, ids) -> Mask:
        start = scalars.starts_B[b]
        key_block = scalars.part_1[0] * self.part_blocks + step.keys
        query_ids, key_ids = ids or (None, None)
        return Mask(
            visibility=self.problem.visibility,
            row=start + step.queries * self.blocks.queries,
            column=key_block * self.blocks.keys,
            key_count=self.problem.S,
            query_ids=query_ids,
            key_ids=key_ids,
        )

    def queries(self) -> pl.BlockSpec:
        """Returns the block spec of [B, T, N * H]."""

        def index(b, g, r, t, *scalars):
            scalars = Scalars(*scalars)
            head = scalars.query_heads_X[self.place(g, r)]
            return b, self.step(scalars, b, t).queries, head

        return pl.BlockSpec((1, self.blocks.queries, self.H), index)

    def query_rows(self, rows: int) -> pl.BlockSpec:
        """Returns the block spec of [B, N, rows, T]."""

        def index(b, g, r, t, *scalars):
            scalars = Scalars(*scalars)
            head = scalars.query_heads_X[self.place(g, r)]
            return b, head, 0, self.step(scalars, b, t).queries

        return pl.BlockSpec((1, 1, rows, self.blocks.queries), index)

    def keys(self) -> pl.BlockSpec:
        """Returns the block spec of [B, S, K * H]."""

        def index(b, g, r, t, *scalars):
            scalars = Scalars(*scalars)
            head = scalars.kv_heads_X[self.place(g, r)]
            return b, self._key_block(scalars, b, t), head

        return pl.BlockSpec((1, self.blocks.keys, self.H), index)

    def resident_keys(self) -> pl.BlockSpec:
        """Returns the block spec of [B, S, used KV heads * H], a part of the keys at once."""

        def index(b, g, r, t, *scalars):
            scalars = Scalars(*scalars)
            return b, scalars.part_1[0], scalars.slots_X[self.place(g, r)]

        return pl.BlockSpec((1, self.part_blocks * self.blocks.keys, self.H), index)

    def ids(self) -> list[pl.BlockSpec]:
        """Returns the block specs of the segments [B, 1, T] and [B, 1, S], if passed."""
        if not self.problem.segments:
            return []

        def of_queries(b, g, r, t, *scalars):
            return b, 0, self.step(Scalars(*scalars), b, t).queries

        def of_keys(b, g, r, t, *scalars):
            return b, 0, self._key_block(Scalars(*scalars), b, t)

        return [
            pl.BlockSpec((1, 1, self.blocks.queries), of_queries),
            pl.BlockSpec((1, 1, self.blocks.keys), of_keys),
        ]

    def _key_block(self, scalars: Scalars, b, t):
        return scalars.part_1[0] * self.part_blocks + self.step(scalars, b, t).keys


def scalars_of(call: Call, steps_BL, starts_B, part) -> Scalars:
    heads = call.heads
    table = lambda values: jnp.array(values, jnp.int32)
    return Scalars(
        steps=jnp.ravel(steps_BL),
        query_heads_X=table(heads.query_heads),
        kv_heads_X=table(heads.kv_heads),
        slots_X=table(heads.slots),
        starts_B=starts_B,
        part_1=jnp.reshape(jnp.asarray(part, jnp.int32), (1,)),
    )
