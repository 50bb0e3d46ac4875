"""Runs slot attention forward, in one TPU kernel.

A program takes a few KV heads with their query heads, and a few chunks of 128 tokens; the slots of
each KV head stay in VMEM from one grid step to the next. In a chunk that slots K and V enter, with
weights D and decays as in `pairs` and `levels`:

    logits[m, t] = scale (entry[m, t] K_m q_t + sum_i D[m, i, t] k_i q_t)
    p = softmax(logits);   out_t = (entry p)_t V + sum_i (sum_m D[m, i, t] p[m, t]) v_i
    K' = through K + (exit share)^T k,   V' likewise

The slots are linear in the writes, so that all but their reading precedes them.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.tpu.products import Products
from pallas_kernels.interleave import interleave
from pallas_kernels.slot_attention.tpu.blocks import CHUNK
from pallas_kernels.slot_attention.tpu.layout import Layout
from pallas_kernels.slot_attention.tpu.levels import ENTRY, EXIT, Constants, constants
from pallas_kernels.slot_attention.tpu.pairs import Weights, chunk_sums
from pallas_kernels.slot_attention.tpu.read import Queries, cut, softmax
from pallas_kernels.varying import array_type, vary_alike


def forward(q_BTD, k_BTD, v_BTD, forget_BKMT, marks_B2T, slots_BKMX, *, layout, problem, save):
    """Calls the kernel; heads lie side by side, T is a multiple of the layout's step.

    Args:
      forget_BKMT: log of the share that the slots keep beside the written token.
      marks_B2T: 1 where the query sees the slots, and where a segment starts.
      slots_BKMX: keys and values of the slots side by side, X = 2 H.

    Returns:
      Output [B, T, N * H], log-sum-exp [B, programs, query heads of a program, T], final slots;
      with `save` also the slots that enter each chunk [B, K, chunks, M, X], in the dtype of v.
    """
    fixed = constants(v_BTD.dtype, layout.slots)
    inputs = vary_alike(q_BTD, k_BTD, v_BTD, forget_BKMT, marks_B2T, *fixed, slots_BKMX)
    out = functools.partial(array_type, like=inputs)
    B, K, M, X = slots_BKMX.shape
    T, dtype = v_BTD.shape[1], v_BTD.dtype
    blocks = layout.blocks
    lse = (B, layout.programs, blocks.kv_heads * blocks.readers, T)
    outputs = [out(q_BTD.shape, dtype), out(lse, jnp.float32), out(slots_BKMX.shape, jnp.float32)]
    specs = [layout.queries(), layout.rows(), layout.slot_states()]
    if save:
        outputs.append(out((B, K, T // CHUNK, M, X), dtype))
        specs.append(layout.entries())
    return pl.pallas_call(
        functools.partial(_kernel, layout=layout, scale=problem.scale),
        grid=layout.grid(B),
        in_specs=[
            *(layout.queries(), layout.keys(), layout.keys(), layout.gates(), layout.marks()),
            *map(layout.constant, fixed),
            layout.slot_states(),
        ],
        out_specs=specs,
        out_shape=outputs,
        scratch_shapes=[layout.carry()],
        name="slot_attention_forward",
        interpret=problem.interpret,
        compiler_params=layout.compiler_params(),
    )(*inputs)


def _kernel(*refs, layout: Layout, scale):
    q_ref, k_ref, v_ref, forget_ref, marks_ref, *refs = refs
    fixed, (initial_ref, out_ref, lse_ref, final_ref, *entries_refs, carry_ref) = (
        Constants(*refs[:3]),
        refs[3:],
    )
    blocks, H = layout.blocks, layout.H
    products = Products(float32=v_ref.dtype == jnp.float32, packed=blocks.packed)
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        carry_ref[...] = initial_ref[0]

    @functools.cache
    def sums(piece: int):
        t = _span(piece, CHUNK)
        return chunk_sums(forget_ref[0, :, :, t], marks_ref[0, 1:, t], fixed, products)

    finished = set()

    def chain(head: int, piece: int):
        t, h = _span(piece, CHUNK), _span(head, H)
        queries = Queries(head, blocks.readers, H)
        of_head = sums(piece)[_span(head, layout.slots)]
        yield
        seen_1C, starts_1C = (marks_ref[0, i : i + 1, t] for i in range(2))
        weights = Weights(of_head, forget_ref[0, head, :, t], starts_1C, fixed, products)
        k_CH, v_CH = products.round(k_ref[0, t, h])[0], products.round(v_ref[0, t, h])[0]
        added_MX = products(weights.writes[EXIT], (jnp.concatenate([k_CH, v_CH], 1),))
        yield
        while piece and (head, piece - 1) not in finished:
            yield
        slots_MX = carry_ref[head]
        carry_ref[head] = weights.through_M1 * slots_MX + added_MX
        finished.add((head, piece))
        if entries_refs:
            entries_refs[0][0, head, piece] = slots_MX.astype(entries_refs[0].dtype)
        slots_MX = products.round(slots_MX)[0]
        keys = jnp.concatenate([k_CH, slots_MX[:, :H]], 0)
        scores = products((keys,), queries.rows(q_ref, t, products), transpose_right=True)
        scores = cut(scores, blocks.readers)
        yield
        pairs = [x[:CHUNK] for x in scores]
        within, _ = yield from weights.to_slots(pairs, weights.parted(pairs))
        yield
        entry_MC = weights.decays[ENTRY]
        logits = [entry_MC * x[CHUNK:] + y for x, y in zip(scores, within, strict=True)]
        found = [softmax(x, scale, seen_1C, layout.used_slots) for x in logits]
        p = [x for x, _ in found]
        decayed = weights.decayed(p)
        shares = yield from weights.to_pairs(p, decayed)
        entered = cut(decayed[ENTRY][0], blocks.readers)
        yield
        values = jnp.concatenate([v_CH, slots_MX[:, H:]], 0)
        for reader, (_, lse_1C) in enumerate(found):
            read = jnp.concatenate([products.round(shares[reader])[0], entered[reader]], 0)
            out_CH = products((read.T,), (values,))
            out_ref[0, t, queries.lanes(reader)] = out_CH.astype(out_ref.dtype)
            number = queries.number(reader)
            lse_ref[0, 0, number : number + 1, t] = lse_1C
            yield

    order = [(head, piece) for piece in range(blocks.pieces) for head in range(blocks.kv_heads)]
    interleave([chain(*task) for task in order], blocks.skew)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        final_ref[0] = carry_ref[...]


def _span(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)
