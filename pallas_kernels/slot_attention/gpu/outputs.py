"""Computes outputs and log-sum-exp, all chunks in parallel.

A program has one chunk of one KV head. Its two warpgroups share the decays, keys, values and slots,
and take the query heads that read them in turn.
"""

import functools

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu.passes import Readers, readers_between
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import meet, on_rows, registers, rounded
from pallas_kernels.slot_attention.gpu import decays
from pallas_kernels.slot_attention.gpu.chunks import CHUNK, SLOTS, Gates

WARPGROUPS = 2


def outputs(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    gates: Gates,
    states_BKZXHM,
    seen_BT,
    readers: Readers,
    *,
    scale: float,
    slots: int,
    interpret,
):
    """Returns output [B, T, N, H] in bf16 and log-sum-exp [B, N, T] in float32.

    Args:
      states_BKZXHM: slots that enter each chunk.
      seen_BT: 1 where the query sees the slots, else 0.
      slots: how many slots there are; the others only fill up.
    """
    B, T, N, H = q_BTNH.shape
    chunk = lambda *shape: blocks.operand(*shape, CHUNK, H)
    return blocks.kernel(
        functools.partial(_body, scale=scale, slots=slots, interpret=bool(interpret)),
        *(q_BTNH, k_BTKH, v_BTKH, gates, states_BKZXHM, seen_BT, readers),
        name="slot_attention_outputs",
        grid=dict(b=B, k=k_BTKH.shape[2], z=T // CHUNK),
        outputs=[(q_BTNH.shape, jnp.bfloat16), ((B, N, T), jnp.float32)],
        scratch=dict(
            k_CH=chunk(),
            v_CH=chunk(),
            state_XHM=blocks.operand(2, H, SLOTS),
            gates_XCM=blocks.operand(2, CHUNK, SLOTS),
            made=decays.buffers(),
            q_WCH=chunk(WARPGROUPS),
            out_WCH=chunk(WARPGROUPS),
            lse_WC=blocks.vectors(WARPGROUPS, CHUNK),
            loaded=plgpu.Barrier(num_arrivals=7),
            ready=plgpu.Barrier(num_arrivals=WARPGROUPS),
            q_full=plgpu.Barrier(num_barriers=WARPGROUPS),
        ),
        warpgroups=WARPGROUPS,
        interpret=interpret,
    )


def _body(
    q,
    k,
    v,
    gates: Gates,
    states,
    seen,
    readers,
    out,
    lse,
    *,
    k_CH,
    v_CH,
    state_XHM,
    gates_XCM,
    made,
    q_WCH,
    out_WCH,
    lse_WC,
    loaded,
    ready,
    q_full,
    scale,
    slots,
    interpret,
):
    b, kv_head, z, w = (lax.axis_index(axis) for axis in ("b", "k", "z", "warpgroup"))
    tokens = pl.ds(z * CHUNK, CHUNK)
    product = functools.partial(blocks.product, interpret=interpret)

    @pl.when(w == 0)
    def _load():
        place = b, kv_head, z
        load(loaded, place, gates, (k, v), states, gates_XCM, made, (k_CH, v_CH), state_XHM)

    plgpu.barrier_wait(loaded)
    decays.make(made, gates_XCM, w, WARPGROUPS, product)
    meet(ready)
    seen_C = vector(seen.at[b, tokens])
    first, last = readers_between(readers, kv_head)

    @pl.loop(0, lax.div(last - first - w + 1, jnp.int32(WARPGROUPS)))
    def _head(x):
        head = readers.order_N[first + w + WARPGROUPS * x]
        blocks.copy_in(q_full.at[w], (q.at[b, tokens, head], q_WCH.at[w]))
        plgpu.barrier_wait(q_full.at[w])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        scores_CC = out_WCH.at[w, :, pl.ds(0, CHUNK)]
        total_CM, _ = decays.read(q_WCH.at[w], k_CH, state_XHM.at[0], made, scores_CC, product)
        weights_CM, lse_C = softmax(total_CM, seen_C, scale, slots)
        out_CH = rounded(decays.mix(weights_CM, state_XHM.at[1], v_CH, made, product))
        out_WCH[w] = out_CH
        lse_WC[w] = lse_C
        blocks.copy_out(
            (out_WCH.at[w], out.at[b, tokens, head]), (lse_WC.at[w], lse.at[b, head, tokens])
        )

    plgpu.wait_smem_to_gmem(0)


def load(barrier, place, gates, written, states, gates_XCM, made, written_CH, state_XHM) -> None:
    """Starts the copies of a chunk's gates, keys, values and entering slots, for one KV head."""
    b, kv_head, z = place
    tokens = b, pl.ds(z * CHUNK, CHUNK), kv_head
    blocks.copy_in(
        barrier,
        *decays.gate_copies(gates, tokens, gates_XCM, made.share_CM),
        *((x.at[tokens], x_CH) for x, x_CH in zip(written, written_CH, strict=True)),
        *((states.at[*place, side], state_XHM.at[side]) for side in range(2)),
    )


def vector(ref):
    """Loads a number for each row of a tile from global memory."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)


def softmax(products_CM, seen_C, scale: float, slots: int):
    """Returns the weights of the slots and the log-sum-exp; 0 and -inf where none is seen."""
    logits_CM = registers(products_CM * scale)
    if slots < SLOTS:
        logits_CM = registers(jnp.where(decays.indices()[1] < slots, logits_CM, -jnp.inf))
    peak_C = jnp.max(logits_CM, axis=1)
    powers_CM = registers(jnp.exp(registers(logits_CM - on_rows(peak_C, decays.TILE))))
    total_C = jnp.sum(powers_CM, axis=1)
    lse_C = jnp.where(seen_C > 0, peak_C + jnp.log(total_C), -jnp.inf)
    return registers(powers_CM * on_rows(seen_C / total_C, decays.TILE)), lse_C
