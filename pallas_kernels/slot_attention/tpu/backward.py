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

`gates` makes the gradients of the gates from dD.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.tpu.products import Products, transpose
from pallas_kernels.interleave import interleave
from pallas_kernels.slot_attention.tpu import tile
from pallas_kernels.slot_attention.tpu.blocks import CHUNK
from pallas_kernels.slot_attention.tpu.gates import Reads, gate_gradients
from pallas_kernels.slot_attention.tpu.layout import Layout
from pallas_kernels.slot_attention.tpu.levels import ENTRY, EXIT, Constants, constants
from pallas_kernels.slot_attention.tpu.pairs import Weights, chunk_sums
from pallas_kernels.slot_attention.tpu.read import Queries, cut, mask_slots
from pallas_kernels.varying import array_type, vary_alike

GROUP = 4


def backward(
    q_BTD, k_BTD, v_BTD, forget_BKMT, marks_B2T, dout_BTD, lse, dlse, entries, dslots_BKMX,
    *, layout, problem,
):  # fmt: skip
    """Calls the kernel; `entries` as `forward` saves them.

    Returns:
      dq, dk, dv; gradients of `forget_BKMT` and of the initial slots.
    """
    fixed = constants(v_BTD.dtype, layout.slots)
    inputs = vary_alike(
        *(q_BTD, k_BTD, v_BTD, dout_BTD, forget_BKMT, marks_B2T, *fixed),
        *(lse, dlse, entries, dslots_BKMX),
    )
    out = functools.partial(array_type, like=inputs)
    arrays = (q_BTD, k_BTD, v_BTD, forget_BKMT, dslots_BKMX)
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
            *(queries, keys, keys, queries, gate, layout.marks()),
            *map(layout.constant, fixed),
            *(layout.rows(), layout.rows(), layout.entries(), slots),
        ],
        out_specs=[queries, keys, keys, gate, slots],
        out_shape=[out(x.shape, x.dtype) for x in arrays],
        scratch_shapes=[layout.carry()],
        name="slot_attention_backward",
        interpret=problem.interpret,
        compiler_params=layout.compiler_params(),
    )(*inputs)


def _kernel(*refs, layout: Layout, scale):
    inputs, outputs, carry_ref = refs[:13], refs[13:-1], refs[-1]
    q_ref, k_ref, v_ref, dout_ref, forget_ref, marks_ref = inputs[:6]
    fixed = Constants(*inputs[6:9])
    lse_ref, dlse_ref, entries_ref, dfinal_ref = inputs[9:]
    dq_ref, dk_ref, dv_ref, dforget_ref, dinitial_ref = outputs
    blocks, H = layout.blocks, layout.H
    products = Products(float32=v_ref.dtype == jnp.float32, packed=blocks.packed)
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        carry_ref[...] = dfinal_ref[0]

    @functools.cache
    def sums(piece: int):
        t = _span(piece, CHUNK)
        return chunk_sums(forget_ref[0, :, :, t], marks_ref[0, 1:, t], fixed, products)

    finished, span_gradients = set(), {}

    def chain(head: int, piece: int):
        t, h = _span(piece, CHUNK), _span(head, H)
        of = Queries(head, blocks.readers, H)
        of_head = sums(piece)[_span(head, layout.slots)]
        yield
        seen_1C, starts_1C = (marks_ref[0, i : i + 1, t] for i in range(2))
        weights = Weights(of_head, forget_ref[0, head, :, t], starts_1C, fixed, products)
        decays = weights.decays
        k_CH, v_CH = products.round(k_ref[0, t, h])[0], products.round(v_ref[0, t, h])[0]
        slots_MX = entries_ref[0, head, piece]
        q, dout = of.rows(q_ref, t, products), of.rows(dout_ref, t, products)
        scores = []
        for own_CH, slots_MH, read in ((k_CH, slots_MX[:, :H], q), (v_CH, slots_MX[:, H:], dout)):
            left = (jnp.concatenate([own_CH, slots_MH], 0),)
            scores += cut(products(left, read, transpose_right=True), blocks.readers)
            yield
        pairs, entered = [x[:CHUNK] for x in scores], [x[CHUNK:] for x in scores]
        parted = weights.parted(pairs)
        within, levels = yield from weights.to_slots(pairs, parted)
        yield
        read = [decays[ENTRY] * x + y for x, y in zip(entered, within, strict=True)]
        half = blocks.readers
        dlogits, p = [], []
        for reader, (logits_MC, dp_MC) in enumerate(zip(read[:half], read[half:], strict=True)):
            number = of.number(reader)
            rows = (x[0, 0, number : number + 1, t] for x in (lse_ref, dlse_ref))
            logits_MC = mask_slots(scale * logits_MC, layout.used_slots)
            dlogits_MC, p_MC = _softmax_gradients(logits_MC, dp_MC, *rows, seen_1C)
            dlogits.append(scale * dlogits_MC)
            p.append(p_MC)
        outer = [weights.low(x) for x in (*dlogits, *p)]
        reads = Reads(pairs, parted, [weights.low(x) for x in entered], levels)
        decayed = weights.decayed(outer)
        dpairs = yield from weights.to_pairs(outer, decayed)
        dpairs = [products.round(x)[0] for x in dpairs]
        entry = cut(decayed[ENTRY][0], len(outer))
        for reader in range(blocks.readers):
            read = jnp.concatenate([dpairs[reader], entry[reader]], 0)
            keys = (jnp.concatenate([k_CH, slots_MX[:, :H]], 0),)
            dq_CH = products((read.T,), keys)
            dq_ref[0, t, of.lanes(reader)] = dq_CH.astype(dq_ref.dtype)
            yield
        while piece + 1 < blocks.pieces and (head, piece + 1) not in finished:
            yield
        dslots_MX = carry_ref[head]
        added = [
            products((jnp.concatenate(entry[:half], 1),), q),
            products((jnp.concatenate(entry[half:], 1),), dout),
        ]
        carry_ref[head] = weights.through_M1 * dslots_MX + jnp.concatenate(added, 1)
        finished.add((head, piece))
        yield
        dslots = products.round(dslots_MX)[0]
        to_exit = transpose(weights.writes[EXIT])[0]
        for ref, of_pairs, of_slots, read in (
            (dk_ref, dpairs[:half], dslots[:, :H], q),
            (dv_ref, dpairs[half:], dslots[:, H:], dout),
        ):
            left = jnp.concatenate([*of_pairs, to_exit], 1)
            x_CH = products((left,), (jnp.concatenate([read[0], of_slots], 0),))
            ref[0, t, h] = x_CH.astype(ref.dtype)
            yield
        written = (jnp.concatenate([k_CH, v_CH], 1),)
        left_MC = products((dslots,), written, transpose_right=True)
        yield
        kept_M1 = jnp.sum(dslots_MX * slots_MX.astype(jnp.float32), axis=1, keepdims=True)
        dforget_MC, span_gradients[head, piece] = yield from gate_gradients(
            weights, reads, outer, decayed, left_MC, kept_M1
        )
        dforget_ref[0, head, :, t] = dforget_MC
        yield from add_spans(
            [x for x in range(blocks.kv_heads) if x // GROUP == head // GROUP], piece
        )

    def add_spans(heads: list, piece: int):
        if any((x, piece) not in span_gradients for x in heads):
            return
        yield
        left = (jnp.concatenate([span_gradients[x, piece] for x in heads], 0),)
        found = products(left, (fixed.sums[:CHUNK],), transpose_right=True)
        yield
        for i, head in enumerate(heads):
            dforget_ref[0, head, :, _span(piece, CHUNK)] += found[_span(i, layout.slots)]

    pieces = reversed(range(blocks.pieces))
    order = [(head, piece) for piece in pieces for head in range(blocks.kv_heads)]
    interleave([chain(*task) for task in order], blocks.skew)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        dinitial_ref[0] = carry_ref[...]


def _softmax_gradients(logits_MC, dp_MC, lse_1C, dlse_1C, seen_1C):
    """Returns the gradients of logits, and the probabilities."""
    p_MC = seen_1C * jnp.exp(logits_MC - lse_1C)
    common_1C = dlse_1C - tile.sum_slots(p_MC * dp_MC)
    return p_MC * (dp_MC + common_1C), p_MC


def _span(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)
