"""Computes the gradients of logits and queries, all chunks in parallel.

With V[t] the slots' values that query t sees, and dlse the gradient of the log-sum-exp:

    dP = dO V^T     dL = scale P (dP - row sums of P dP + dlse)     dQ = dL K[t]

Two warpgroups share a chunk of a KV head and go through the query heads that read it: one computes
the logits from queries and keys, the other dP from output gradients and values.
"""

import functools
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu.passes import Readers, anew, readers_between
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import floats, meet, on_rows, registers, rounded
from pallas_kernels.slot_attention.gpu import decays
from pallas_kernels.slot_attention.gpu.chunks import CHUNK, SLOTS, Gates, Pair
from pallas_kernels.slot_attention.gpu.outputs import load, softmax, vector

SIDES = 2


class Errors(NamedTuple):
    """Carries what the backward needs of each query.

    Attributes:
      dq_BTNH: bf16.
      weights: dL and P [B, T, N, M], bf16.
      entered: both times the decay since the chunk's start.
      dentry_BKZCM: sum over query heads of the gradients of the log of that decay.
    """

    dq_BTNH: jax.Array
    weights: Pair
    entered: Pair
    dentry_BKZCM: jax.Array


def errors(
    rows: Pair,
    written: Pair,
    gates: Gates,
    states_BKZXHM,
    seen_BT,
    dlse_BNT,
    readers: Readers,
    *,
    scale: float,
    slots: int,
    interpret,
) -> Errors:
    """Takes queries and output gradients, keys and values, and the slots that enter each chunk."""
    B, T, N, H = rows.k.shape
    K, Z = written.k.shape[2], T // CHUNK
    chunks = blocks.operand(SIDES, CHUNK, H)
    tiles = blocks.operand(SIDES, CHUNK, SLOTS)
    weights = ((B, T, N, SLOTS), jnp.bfloat16)
    dq, dlogits, p, dlogits_entered, p_entered, dentry = blocks.kernel(
        functools.partial(_body, scale=scale, slots=slots, interpret=bool(interpret)),
        *(rows, written, gates, states_BKZXHM, seen_BT, dlse_BNT, readers),
        name="slot_attention_errors",
        grid=dict(b=B, k=K, z=Z),
        outputs=[
            (rows.k.shape, jnp.bfloat16),
            *[weights] * 4,
            ((B, K, Z, CHUNK, SLOTS), jnp.float32),
        ],
        scratch=dict(
            rows_XCH=chunks,
            written_XCH=chunks,
            state_XHM=blocks.operand(SIDES, H, SLOTS),
            made=decays.buffers(),
            weights_XCM=tiles,
            gates_XCM=tiles,
            dweights_1CM=blocks.vectors(1, CHUNK, SLOTS),
            loaded=plgpu.Barrier(num_arrivals=7),
            full=plgpu.Barrier(num_barriers=SIDES),
            met=plgpu.Barrier(num_arrivals=SIDES),
        ),
        warpgroups=SIDES,
        interpret=interpret,
    )
    return Errors(dq, Pair(dlogits, p), Pair(dlogits_entered, p_entered), dentry)


def _body(
    rows: Pair,
    written: Pair,
    gates: Gates,
    states,
    seen,
    dlse,
    readers,
    dq,
    *outputs,
    rows_XCH,
    written_XCH,
    state_XHM,
    made,
    weights_XCM,
    gates_XCM,
    dweights_1CM,
    loaded,
    full,
    met,
    scale,
    slots,
    interpret,
):
    weights, entered, dentry = outputs[:2], outputs[2:4], outputs[4]
    b, kv_head, z, side = (lax.axis_index(axis) for axis in ("b", "k", "z", "warpgroup"))
    tokens = pl.ds(z * CHUNK, CHUNK)
    product = functools.partial(blocks.product, interpret=interpret)

    @pl.when(side == 0)
    def _load():
        buffers = (written_XCH.at[0], written_XCH.at[1])
        load(loaded, (b, kv_head, z), gates, written, states, gates_XCM, made, buffers, state_XHM)

    plgpu.barrier_wait(loaded)
    decays.make(made, gates_XCM, side, SIDES, product)
    meet(met)
    seen_C = vector(seen.at[b, tokens])
    entered_XCM = gates_XCM  # the gates are not needed any more
    first, last = readers_between(readers, kv_head)

    def add_head(x, dentry_CM):
        head = readers.order_N[x]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for number, rows_BTNH in enumerate(rows):

            @pl.when(side == number)
            def _(number=number, rows_BTNH=rows_BTNH):
                source = rows_BTNH.at[b, tokens, head]
                blocks.copy_in(full.at[number], (source, rows_XCH.at[number]))

        plgpu.barrier_wait(full.at[side])
        products_CM, entered_CM = decays.read(
            *(x.at[anew(side)] for x in (rows_XCH, written_XCH, state_XHM)),
            made,
            weights_XCM.at[anew(side)],
            product,
        )

        @pl.when(side == 1)
        def _hand_over():
            blocks.put(dweights_1CM.at[0], products_CM, interpret=interpret)

        meet(met)

        @pl.when(side == 0)
        def _weigh():
            p_CM, _ = softmax(products_CM, seen_C, scale, slots)
            weights_XCM[1] = rounded(p_CM)
            dp_CM = registers(blocks.matrix(decays.fresh(dweights_1CM)))
            dlse_C = vector(dlse.at[b, head, tokens])
            weights_XCM[0] = rounded(_logits_gradient(p_CM, dp_CM, dlse_C) * scale)

        meet(met)
        weights_CM = floats(weights_XCM.at[side])
        dentry_CM = lax.optimization_barrier(registers(dentry_CM + weights_CM * entered_CM))
        entered_XCM[side] = rounded(weights_CM * decays.entry(made))
        plgpu.commit_smem()
        for number in range(SIDES):

            @pl.when(side == number)
            def _(number=number):
                place = (b, tokens, head)
                plgpu.copy_smem_to_gmem(weights_XCM.at[number], weights[number].at[place])
                plgpu.copy_smem_to_gmem(entered_XCM.at[number], entered[number].at[place])

        @pl.when(side == 0)
        def _query_gradient():
            keys = anew(jnp.int32(0))
            dq_CH = decays.mix(weights_CM, state_XHM.at[keys], written_XCH.at[keys], made, product)
            rows_XCH[0] = rounded(dq_CH)
            blocks.copy_out((rows_XCH.at[0], dq.at[b, tokens, head]))

        return dentry_CM

    zero_CM = registers(jnp.zeros(decays.TILE, jnp.float32))
    dentry_CM = lax.fori_loop(first, last, add_head, zero_CM)

    @pl.when(side == 1)
    def _hand_over_last():
        blocks.put(dweights_1CM.at[0], dentry_CM, interpret=interpret)

    meet(met)

    @pl.when(side == 0)
    def _finish():
        total_CM = registers(dentry_CM + registers(blocks.matrix(dweights_1CM.at[0])))
        blocks.put(dentry.at[b, kv_head, z], total_CM, interpret=interpret)

    plgpu.wait_smem_to_gmem(0)


def _logits_gradient(weights_CM, dweights_CM, dlse_C):
    mean_C = jnp.sum(registers(weights_CM * dweights_CM), axis=1)
    return registers(weights_CM * (dweights_CM - on_rows(mean_C - dlse_C, decays.TILE)))
