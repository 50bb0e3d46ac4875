"""Computes the gradients of slot attention, in one TPU kernel.

Chunks come in reverse; the gradients of the slots stay in VMEM. In the notation of `forward`, with
the scores A = k_i q_t and B = v_i dout_t of pairs, p recomputed, and dK', dV' those of the slots
that leave the chunk:

    dp = entry (V dout_t) + sum_i D B      dlogits = scale p (dp - sum_m p dp + dlse)
    dA = sum_m D dlogits                   dB = sum_m D p, the shares of the forward
    dq = dA k + (entry dlogits) K          dk = dA^T q + exit share dK'
                                           dv = dB^T dout + exit share dV'
    dK = through dK' + (entry dlogits) q   dV = through dV' + (entry p) dout
    dD = dlogits A + p B

From dD follow the gradients of shares and of the sums of log decays, span by span of `levels`; one
product with the transposed matrix of sums turns these into the gradients of log decays.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.tpu.products import Products, transpose
from pallas_kernels.interleave import interleave
from pallas_kernels.slot_attention.tpu import tile
from pallas_kernels.slot_attention.tpu.blocks import CHUNK
from pallas_kernels.slot_attention.tpu.layout import Layout
from pallas_kernels.slot_attention.tpu.levels import ENTRY, EXIT, sum_matrix
from pallas_kernels.slot_attention.tpu.pairs import Weights
from pallas_kernels.slot_attention.tpu.read import Queries, mask_slots
from pallas_kernels.varying import array_type, vary_alike


def backward(
    q_BTD, k_BTD, v_BTD, gates, seen_B1T, dout_BTD, lse, dlse, entries, dslots_BKMX,
    *, layout, problem,
):  # fmt: skip
    """Calls the kernel; `entries` as `forward` saves them.

    Returns:
      dq, dk, dv; gradients of log decays and shares [B, K, M, T]; of the initial slots.
    """
    sums = jnp.asarray(sum_matrix(v_BTD.dtype))
    inputs = vary_alike(
        *(q_BTD, k_BTD, v_BTD, dout_BTD, *gates, seen_B1T, sums),
        *(lse, dlse, entries, dslots_BKMX),
    )
    out = functools.partial(array_type, like=inputs)
    arrays = (q_BTD, k_BTD, v_BTD, *gates, dslots_BKMX)
    queries, keys, gate, slots = (
        layout.queries(),
        layout.keys(),
        layout.gates(),
        layout.slot_states(),
    )
    return pl.pallas_call(
        functools.partial(_kernel, layout=layout, scale=problem.scale),
        grid=layout.grid(len(q_BTD)),
        in_specs=[
            *(queries, keys, keys, queries, gate, gate, layout.seen(), layout.constant(sums)),
            *(layout.rows(), layout.rows(), layout.entries(), slots),
        ],
        out_specs=[queries, keys, keys, gate, gate, slots],
        out_shape=[out(x.shape, x.dtype) for x in arrays],
        scratch_shapes=[layout.carry()],
        name="slot_attention_backward",
        interpret=problem.interpret,
        compiler_params=layout.compiler_params(),
    )(*inputs)


def _kernel(*refs, layout: Layout, scale):
    inputs, outputs, carry_ref = refs[:12], refs[12:-1], refs[-1]
    q_ref, k_ref, v_ref, dout_ref, decay_ref, share_ref, seen_ref, sums_ref = inputs[:8]
    lse_ref, dlse_ref, entries_ref, dfinal_ref = inputs[8:]
    dq_ref, dk_ref, dv_ref, ddecay_ref, dshare_ref, dinitial_ref = outputs
    blocks, H = layout.blocks, layout.H
    products = Products(float32=v_ref.dtype == jnp.float32, packed=blocks.packed)
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        carry_ref[...] = dfinal_ref[0]

    finished = set()

    def chain(head: int, piece: int):
        t, h = _span(piece, CHUNK), _span(head, H)
        of = Queries(head, blocks.readers, H)
        weights = Weights(
            decay_ref[0, head, :, t], share_ref[0, head, :, t], sums_ref[...], products
        )
        decays = weights.decays
        yield
        k_CH, v_CH = products.round(k_ref[0, t, h])[0], products.round(v_ref[0, t, h])[0]
        slots_MX = entries_ref[0, head, piece]
        q, dout = of.rows(q_ref, t, products), of.rows(dout_ref, t, products)
        scores = []
        for own_CH, slots_MH, read in ((k_CH, slots_MX[:, :H], q), (v_CH, slots_MX[:, H:], dout)):
            left = (jnp.concatenate([own_CH, slots_MH], 0),)
            scores += of.cut(products(left, read, transpose_right=True))
            yield
        pairs = [x[:CHUNK] for x in scores]
        parted = weights.parted(pairs)
        sums, levels = weights.to_slots(pairs, parted)
        yield
        entered = [x[CHUNK:] for x in scores]
        sums = [decays[ENTRY] * x + y for x, y in zip(entered, sums, strict=True)]
        p, dlogits = [], []
        for reader in range(blocks.readers):
            number = of.number(reader)
            lse_1C, dlse_1C = (x[0, 0, number : number + 1, t] for x in (lse_ref, dlse_ref))
            logits_MC = mask_slots(scale * sums[reader], layout.used_slots)
            p_MC = seen_ref[0, :, t] * jnp.exp(logits_MC - lse_1C)
            dp_MC = sums[blocks.readers + reader]
            common_1C = dlse_1C - tile.sum_slots(p_MC * dp_MC)
            p.append(p_MC)
            dlogits.append(scale * p_MC * (dp_MC + common_1C))
        outer = [*dlogits, *p]
        decayed = weights.decayed(outer)
        dpairs = weights.to_pairs(outer, decayed)
        yield
        entry = [decays[ENTRY] * x for x in outer]
        for reader in range(blocks.readers):
            read = jnp.concatenate([dpairs[reader], entry[reader]], 0)
            keys = (jnp.concatenate([k_CH, slots_MX[:, :H]], 0),)
            dq_CH = products(products.round(read.T), keys)
            dq_ref[0, t, of.lanes(reader)] = dq_CH.astype(dq_ref.dtype)
            yield
        while piece + 1 < blocks.pieces and (head, piece + 1) not in finished:
            yield
        dslots_MX = carry_ref[head]
        through_M1 = weights.through_M1
        half = blocks.readers
        added = [
            products(_round(products, entry[:half]), q),
            products(_round(products, entry[half:]), dout),
        ]
        carry_ref[head] = through_M1 * dslots_MX + jnp.concatenate(added, 1)
        finished.add((head, piece))
        yield
        dslots = products.round(dslots_MX)[0]
        to_exit = transpose(weights.writes[EXIT])[0]
        for ref, of_pairs, of_slots, read in (
            (dk_ref, dpairs[:half], dslots[:, :H], q),
            (dv_ref, dpairs[half:], dslots[:, H:], dout),
        ):
            left = jnp.concatenate([products.round(x)[0] for x in of_pairs] + [to_exit], 1)
            x_CH = products((left,), (jnp.concatenate([read[0], of_slots], 0),))
            ref[0, t, h] = x_CH.astype(ref.dtype)
            yield
        written = (jnp.concatenate([k_CH, v_CH], 1),)
        left_MC = products((dslots,), written, transpose_right=True)
        yield
        dshare_MC = decays[EXIT] * left_MC
        spans = []
        for level, (factor, from_pairs) in enumerate(zip(decayed, parted, strict=True)):
            to_write_MC = products(factor, from_pairs, transpose_right=True)
            dshare_MC += decays[level] * to_write_MC
            read_MC = tile.add([x * y for x, y in zip(outer, levels[level], strict=True)])
            spans.append(decays[level] * (read_MC + weights.share_MC * to_write_MC))
            yield
        entry_MC = tile.add([x * y for x, y in zip(entry, entered, strict=True)])
        kept_M1 = jnp.sum(dslots_MX * slots_MX.astype(jnp.float32), axis=1, keepdims=True)
        last = tile.lanes(1) == CHUNK - 1
        spans.append(entry_MC + jnp.where(last, through_M1 * kept_M1, 0.0))
        spans.append(decays[EXIT] * weights.share_MC * left_MC)
        sides = (products.round(jnp.concatenate(spans, 1)), (sums_ref[:CHUNK],))
        ddecay_MC = products(*sides, transpose_right=True)
        yield
        near_decay_MC, near_share_MC = _near_gradients(weights, outer, pairs)
        ddecay_ref[0, head, :, t] = ddecay_MC + near_decay_MC
        dshare_ref[0, head, :, t] = dshare_MC + near_share_MC

    pieces = reversed(range(blocks.pieces))
    order = [(head, piece) for piece in pieces for head in range(blocks.kv_heads)]
    interleave([chain(*task) for task in order], blocks.skew)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        dinitial_ref[0] = carry_ref[...]


def _near_gradients(weights: Weights, outer: list, pairs: list):
    """Returns the gradients of log decays and shares by way of the pairs inside tiles."""
    rows = [tile.diagonals(x) for x in pairs]
    ddecay_MC, carried_MC = 0.0, 0.0
    for d in reversed(range(tile.TILE)):
        own_MC = tile.add([x * of[d] for x, of in zip(outer, rows, strict=True)])
        carried_MC = own_MC + carried_MC
        if d:
            ddecay_MC = ddecay_MC + carried_MC * weights.near[d]
            carried_MC = tile.earlier(weights.keep_MC * carried_MC)
    return ddecay_MC, carried_MC


def _round(products: Products, arrays: list) -> tuple:
    return products.round(jnp.concatenate(arrays, axis=1))


def _span(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)
