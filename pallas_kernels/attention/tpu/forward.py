"""Computes softmax attention, in one TPU kernel.

A step takes a block of queries and a block of keys of one head, scores transposed: keys on
sublanes, queries on lanes. The sums over keys are then sums over sublanes, what belongs to a query
is a row vector, and the second product fills a matrix unit 256 wide at a head dimension of 128:

    S^T = K Q^T      m' = max(m, max_k S^T)      P^T = 2^(c (S^T - m'))      c = scale * log2 e
    [O^T; l] <- 2^(c (m - m')) [O^T; l] + [V^T; 1] P^T

The queries of a block are divided into independent chains, so that one chain's exponentials run
while another's products do.
"""

import functools
import math

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.tpu.call import Call, Scalars
from pallas_kernels.attention.tpu.mask import below_diagonal
from pallas_kernels.attention.tpu.products import product, product_transposed
from pallas_kernels.attention.tpu.steps import Do
from pallas_kernels.interleave import interleave
from pallas_kernels.varying import array_type

LOG2_E = math.log2(math.e)
ONES = 16  # rows of ones under V^T: one is enough, but complete tiles are copied
LOWEST = -1e30  # first running maximum: finite, so that -inf - m is never NaN


def forward(scalars: Scalars, length, q_BTD, k_BSD, v_BSD, ids, *, call: Call):
    """Calls the kernel; heads lie side by side, lengths are complete blocks.

    Returns:
      Output [B, T, N * H], and m and l [B, N, 2, T], float32; l is 0 where nothing is seen.
    """
    inputs = (*scalars, q_BTD, k_BSD, v_BSD, *ids)
    B, T, D = q_BTD.shape
    H, blocks = call.H, call.blocks
    scratch = [
        pltpu.VMEM((H + ONES, blocks.queries), jnp.float32),
        pltpu.VMEM((1, blocks.queries), jnp.float32),
        pltpu.VMEM((H + ONES, blocks.keys), q_BTD.dtype),
        pltpu.VMEM((blocks.score_buffers, blocks.keys, blocks.chain), jnp.float32),
    ]
    return pl.pallas_call(
        functools.partial(_kernel, call=call),
        grid_spec=call.grid_spec(
            B,
            length,
            [call.queries(), call.keys(), call.keys(), *call.ids()],
            [call.queries(), call.query_rows(2)],
            scratch,
        ),
        out_shape=[
            array_type(q_BTD.shape, q_BTD.dtype, like=inputs),
            array_type((B, D // H, 2, T), jnp.float32, like=inputs),
        ],
        name="attention_forward",
        interpret=call.problem.interpret,
        compiler_params=call.compiler_params(),
    )(*inputs)


def _kernel(*refs, call: Call):
    scalars, refs = Scalars(*refs[: len(Scalars._fields)]), refs[len(Scalars._fields) :]
    q_ref, k_ref, v_ref, *ids, out_ref, totals_ref, sums_ref, top_ref, vt_ref, scores_ref = refs
    b, t = pl.program_id(0), pl.program_id(3)
    step = call.step(scalars, b, t)
    H, blocks, base2 = call.H, call.blocks, call.problem.scale * LOG2_E

    @pl.when(step.does(Do.BEGIN_QUERIES))
    def _():
        sums_ref[...] = jnp.zeros_like(sums_ref)
        top_ref[...] = jnp.full_like(top_ref, LOWEST)
        vt_ref[H:] = jnp.ones((ONES, blocks.keys), vt_ref.dtype)

    def chain(index: int, kind: Do, mask, key_columns):
        queries = _span(index, blocks.chain)
        scores_SC = scores_ref.at[index % blocks.score_buffers]
        q_CH = q_ref[0, queries]
        last = queries.stop if kind is Do.DIAGONAL else blocks.keys
        pieces = [_span(i, blocks.piece) for i in range(-(-last // blocks.piece))]
        old_1C = top_ref[:, queries]
        new_1C = old_1C
        for keys in pieces:
            score_XC = product_transposed(k_ref[0, keys], q_CH)
            if kind is Do.MASKED:
                score_XC = jnp.where(mask(keys, queries, key_columns), score_XC, -jnp.inf)
            elif kind is Do.DIAGONAL and keys.stop > queries.start:
                score_XC = jnp.where(below_diagonal(keys, queries), score_XC, -jnp.inf)
            scores_SC[keys] = score_XC
            new_1C = jnp.maximum(new_1C, jnp.max(score_XC, axis=0, keepdims=True))
            yield
        top_ref[:, queries] = new_1C
        yield
        weights = []
        for keys in pieces:
            weights.append(jnp.exp2(base2 * (scores_SC[keys] - new_1C)).astype(v_ref.dtype))
            yield
        added_XC = product(vt_ref[:, : pieces[-1].stop], jnp.concatenate(weights))
        yield
        decay_1C = jnp.exp2(base2 * (old_1C - new_1C))
        sums_ref[:, queries] = decay_1C * sums_ref[:, queries] + added_XC

    def body(kind: Do):
        vt_ref[:H] = v_ref[0].T
        mask = call.mask(scalars, b, step, ids) if kind is Do.MASKED else None
        key_columns = mask.key_columns() if mask else None
        chains = [chain(i, kind, mask, key_columns) for i in range(blocks.chains)]
        interleave(chains, blocks.skew)

    for kind in call.kinds:
        pl.when(step.does(kind))(functools.partial(body, kind))

    @pl.when(step.does(Do.END_QUERIES))
    def _():
        total_1T = sums_ref[H : H + 1]
        out_ref[0] = (sums_ref[:H] / jnp.where(total_1T > 0, total_1T, 1.0)).T.astype(out_ref.dtype)
        totals_ref[0, 0, :1], totals_ref[0, 0, 1:] = top_ref[...], total_1T


def _span(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)
