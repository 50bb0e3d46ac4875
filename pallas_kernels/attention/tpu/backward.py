"""Computes the gradients of softmax attention, in one TPU kernel.

It walks the same steps as the forward and computes the weights again from its m and l. Scores are
transposed, keys on sublanes and queries on lanes, and so are all sums, so that at a head dimension
of 128 the last three of the five products fill a matrix unit 256 wide; D is the sum over the
head dimension of out * dout, less the gradient of the log-sum-exp:

    P^T = 2^(c (K Q^T - m) - log2 l)      dS^T = P^T (V dO^T - D)
    dV^T += dO^T P      dK^T += Q^T dS      dQ^T += K^T dS^T

The sums of a part of the keys stay in VMEM while all query heads of their KV head pass by.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.tpu.call import Call, Scalars
from pallas_kernels.attention.tpu.forward import LOG2_E
from pallas_kernels.attention.tpu.mask import below_diagonal
from pallas_kernels.attention.tpu.products import product, product_transposed
from pallas_kernels.attention.tpu.steps import Do
from pallas_kernels.interleave import interleave
from pallas_kernels.varying import array_type


def backward(scalars: Scalars, length, q, k, v, out, dout, rows_BN3T, ids, sums, *, call: Call):
    """Calls the kernel; heads lie side by side, lengths are complete blocks.

    Args:
      rows_BN3T: m, log2 l, and the gradient of the log-sum-exp.
      sums: nothing, or float32 dq of the other parts of the keys, and dk and dv in which this call
        writes its part.

    Returns:
      dq [B, T, N * H], in the dtype of q or of `sums`, and dk and dv [B, S, used KV heads * H].
    """
    inputs = (*scalars, q, k, v, out, dout, rows_BN3T, *ids, *sums)
    B, S = k.shape[:2]
    H, blocks = call.H, call.blocks
    dkeys = (B, S, (max(call.heads.slots) + 1) * H)
    results = [(q.shape, sums[0].dtype if sums else q.dtype), (dkeys, k.dtype), (dkeys, v.dtype)]
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    first_sum = len(inputs) - len(sums)
    matrix = lambda *shape: pltpu.VMEM(shape, jnp.float32)
    stored = lambda *shape: pltpu.VMEM(shape, q.dtype)
    scratch = [
        stored(2, H, blocks.queries),
        matrix(1, blocks.queries),
        stored(2, blocks.keys, blocks.queries),
        matrix(H, blocks.queries),
        matrix(2, call.part_blocks, H, blocks.keys),
    ]
    specs = [call.queries(), call.keys(), call.keys(), call.queries(), call.queries()]
    sum_specs = [call.queries(), anywhere, anywhere] if sums else []
    return pl.pallas_call(
        functools.partial(_kernel, call=call, adds=bool(sums)),
        grid_spec=call.grid_spec(
            B,
            length,
            [*specs, call.query_rows(3), *call.ids(), *sum_specs],
            [call.queries(), call.resident_keys(), call.resident_keys()],
            scratch,
        ),
        out_shape=[array_type(*result, like=inputs) for result in results],
        input_output_aliases={first_sum + i: i for i in range(len(sums))},
        name="attention_backward",
        interpret=call.problem.interpret,
        compiler_params=call.compiler_params(),
    )(*inputs)


def _kernel(*refs, call: Call, adds: bool):
    scalars, refs = Scalars(*refs[: len(Scalars._fields)]), refs[len(Scalars._fields) :]
    q_ref, k_ref, v_ref, out_ref, dout_ref, rows_ref, *refs = refs
    *others, dq_ref, dk_ref, dv_ref, turned_ref, delta_ref, weights_ref, dqt_ref, dkv_ref = refs
    ids, previous = others[: 2 * call.problem.segments], others[2 * call.problem.segments :]
    b, g, r, t = (pl.program_id(axis) for axis in range(4))
    step = call.step(scalars, b, t)
    blocks, base2 = call.blocks, call.problem.scale * LOG2_E
    p_ref, ds_ref = weights_ref.at[0], weights_ref.at[1]
    dtype = q_ref.dtype

    @pl.when(step.does(Do.BEGIN_LIST))
    def _():
        @pl.when(call.changes_kv_head(scalars, g, r, -1))
        def _():
            dkv_ref[...] = jnp.zeros_like(dkv_ref)

    @pl.when(step.does(Do.BEGIN_QUERIES))
    def _():
        dqt_ref[...] = jnp.zeros_like(dqt_ref)
        turned_ref[0], turned_ref[1] = q_ref[0].T, dout_ref[0].T
        passed_TH = out_ref[0].astype(jnp.float32) * dout_ref[0].astype(jnp.float32)
        delta_ref[...] = jnp.sum(passed_TH.T, axis=0, keepdims=True) - rows_ref[0, 0, 2:]

    def query_chain(index: int, kind: Do, mask, key_columns, kt_HS):
        queries = _span(index, blocks.chain)
        q_CH, dout_CH = q_ref[0, queries], dout_ref[0, queries]
        top_1C, log_1C = rows_ref[0, 0, :1, queries], rows_ref[0, 0, 1:2, queries]
        delta_1C = delta_ref[:, queries]
        last = queries.stop if kind is Do.DIAGONAL else blocks.keys
        for i in range(-(-last // blocks.piece)):
            keys = _span(i, blocks.piece)
            score_XC = product_transposed(k_ref[0, keys], q_CH)
            dp_XC = product_transposed(v_ref[0, keys], dout_CH)
            p_XC = jnp.exp2(base2 * (score_XC - top_1C) - log_1C)
            if kind is Do.MASKED:
                p_XC = jnp.where(mask(keys, queries, key_columns), p_XC, 0.0)
            elif kind is Do.DIAGONAL and keys.stop > queries.start:
                p_XC = jnp.where(below_diagonal(keys, queries), p_XC, 0.0)
            p_ref[keys, queries] = p_XC.astype(dtype)
            ds_ref[keys, queries] = (p_XC * (dp_XC - delta_1C)).astype(dtype)
            yield
        dqt_ref[:, queries] += product(kt_HS[:, :last], ds_ref[:last, queries])
        yield

    def key_chain(index: int, kind: Do):
        keys = _span(index, blocks.chain)
        start = keys.start if kind is Do.DIAGONAL else 0
        for slot, (turned, right_ref) in enumerate(((0, ds_ref), (1, p_ref))):
            left_HT = turned_ref[turned, :, start:]
            added_HC = product_transposed(left_HT, right_ref[keys, start:])
            dkv_ref[slot, step.keys, :, keys] += added_HC
            yield

    def body(kind: Do):
        mask = call.mask(scalars, b, step, ids) if kind is Do.MASKED else None
        key_columns = mask.key_columns() if mask else None
        kt_HS = k_ref[0].T
        chains = range(blocks.chains)
        interleave([query_chain(i, kind, mask, key_columns, kt_HS) for i in chains], blocks.skew)
        interleave([key_chain(i, kind) for i in range(blocks.keys // blocks.chain)], 1.0)

    for kind in call.kinds:
        pl.when(step.does(kind))(functools.partial(body, kind))

    @pl.when(step.does(Do.END_QUERIES))
    def _():
        dq_TH = (call.problem.scale * dqt_ref[...]).T
        dq_ref[0] = (dq_TH + previous[0][0] if adds else dq_TH).astype(dq_ref.dtype)

    @pl.when(step.does(Do.END_LIST))
    def _():
        @pl.when(call.changes_kv_head(scalars, g, r, +1))
        def _():
            @pl.loop(0, call.part_blocks)
            def _(block):
                keys = pl.ds(pl.multiple_of(block * blocks.keys, blocks.keys), blocks.keys)
                dk_ref[0, keys] = (call.problem.scale * dkv_ref[0, block]).T.astype(dk_ref.dtype)
                dv_ref[0, keys] = dkv_ref[1, block].T.astype(dv_ref.dtype)


def _span(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)
