"""Computes the gradients of the gated delta rule, in one TPU kernel.

Chunks come in reverse; the gradient of the state stays in VMEM. In the notation of `forward`, with
R = scale (Q K^T * D) and A = (I + L)^-1:

    dE = R^T dO + beta exp(g_C - g) K dS'                 dV = A^T dE
    dR = dO E^T                                           dL = -dV E^T
    dS = exp(g_C) dS' + scale (exp(g) Q)^T dO - (exp(g) K)^T dV

and dQ, dK follow. beta_j scales all that token j writes, so its gradient is dV_j . E_j / beta_j.
That of g takes row sums less column sums of dR * R + dL * L below the diagonal: on the diagonal
they cancel, and under strong decay their difference would be all rounding.

Which products need two parts of a factor was measured on correlated keys, see docs/numerics.md.
"""

import functools
import operator

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated_delta.tpu.blocks import CHUNK, Blocks
from pallas_kernels.gated_delta.tpu.gates import BlockGates, Gates
from pallas_kernels.gated_delta.tpu.layout import Layout
from pallas_kernels.gated_delta.tpu.products import Products, transpose
from pallas_kernels.interleave import interleave
from pallas_kernels.varying import array_type


def backward(
    q_BTD, k_BTD, v_BTD, dout_BTD, gates: Gates, states, inverses, dstate_BNHP, *, layout, problem
):
    """Calls the kernel; `states` and `inverses` as `forward` saves them.

    Returns:
      dq and dk [B, T, programs * key heads of a program * H], to be summed over programs that share
      a key head; dv [B, T, N * P]; the three arguments of `gates.gate_gradients`; gradient of the
      initial state [B, N, H, P].
    """
    inputs = (q_BTD, k_BTD, v_BTD, dout_BTD, *gates, states, inverses, dstate_BNHP)
    out = functools.partial(array_type, like=inputs)
    B, T = v_BTD.shape[:2]
    blocks = layout.blocks
    dkey = out((B, T, layout.programs * blocks.key_heads * layout.H), q_BTD.dtype)
    keys, values, gate, state = layout.keys(), layout.values(), layout.gates(), layout.state()
    parts = inverses.shape[-1] // CHUNK
    return pl.pallas_call(
        functools.partial(_kernel, layout=layout, scale=problem.scale),
        grid=layout.grid(B),
        in_specs=[
            *(keys, keys, values, values),
            *[gate] * len(gates),
            *(layout.states(), layout.inverses(parts), state),
        ],
        out_specs=[layout.own_keys(), layout.own_keys(), values, gate, gate, gate, state],
        out_shape=[
            *(dkey, dkey, out(v_BTD.shape, v_BTD.dtype)),
            *[out(gates.kept.shape, jnp.float32)] * 3,
            out(dstate_BNHP.shape, jnp.float32),
        ],
        scratch_shapes=[
            layout.carry(),
            pltpu.VMEM((3, blocks.tokens, blocks.heads), jnp.float32),
            pltpu.VMEM((blocks.heads, blocks.tokens), jnp.float32),
        ],
        name="gated_delta_backward",
        interpret=problem.interpret,
        compiler_params=layout.compiler_params(),
    )(*inputs)


def _kernel(q_ref, k_ref, v_ref, dout_ref, *refs, layout: Layout, scale):
    gate_refs, refs = refs[: len(Gates._fields)], refs[len(Gates._fields) :]
    states_ref, inverses_ref, dfinal_ref, *output_refs, carry_ref, columns_ref, rows_ref = refs
    dq_ref, dk_ref, dv_ref, dsum_ref, dexit_ref, dwrite_ref, dinitial_ref = output_refs
    float32 = v_ref.dtype == jnp.float32
    products = Products(float32=float32, packed=layout.blocks.packed)
    gates = BlockGates(gate_refs, float32=float32)
    blocks, H, P = layout.blocks, layout.H, layout.P
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        carry_ref[...] = dfinal_ref[0]

    finished = set()
    key_gradients = _KeyGradients((dq_ref, dk_ref), blocks, H)

    def chain(head: int, piece: int):
        t, p, h = _span(piece, CHUNK), _span(head, P), _span(head // blocks.group, H)
        k = products.round(k_ref[0, t, h])
        keys_queries = products.round(jnp.concatenate([k_ref[0, t, h], q_ref[0, t, h]], 0))
        state = products.round(states_ref[0, head, piece])
        right = jnp.concatenate([*transpose(k), *state], 1)
        pairs_seen = products(keys_queries, (right,))
        keys_CC, queries_CC = pairs_seen[:CHUNK, :CHUNK], pairs_seen[CHUNK:, :CHUNK]
        yield
        decay_CC = gates.decay(head, piece)
        strict_CC = jnp.where(gates.strict, decay_CC, 0.0)
        decay_CC = scale * decay_CC
        kept_CP = gates.kept(head, piece, P)
        to_exit_CP = gates.to_exit(head, piece, P)
        seen_k_CP = kept_CP * pairs_seen[:CHUNK, CHUNK:]
        seen_q_CP = kept_CP * pairs_seen[CHUNK:, CHUNK:]
        inverse = products.parts(inverses_ref[0, head, t], CHUNK)
        target_CP = v_ref[0, t, p].astype(jnp.float32) - seen_k_CP
        error_CP = products(inverse, products.split(target_CP))
        yield
        error = products.split(error_CP)
        dout = products.round(dout_ref[0, t, p])
        read = products.split(queries_CC * decay_CC)
        derror_CP = products(transpose(read), dout)
        yield
        while piece + 1 < blocks.pieces and (head, piece + 1) not in finished:
            yield
        dstate_HP = carry_ref[head]
        dstate = products.split(dstate_HP)
        through_exit_CP = to_exit_CP * products(k, dstate)
        yield
        dv_CP = products(transpose(inverse), products.split(derror_CP + through_exit_CP))
        yield
        dv_ref[0, t, p] = dv_CP.astype(dv_ref.dtype)
        dv = products.split(dv_CP)
        dread_CC = products(dout, error, transpose_right=True)
        dlower_CC = -products(dv, error, transpose_right=True)
        yield
        dqueries_CC, dkeys_CC = dread_CC * decay_CC, dlower_CC * strict_CC
        dqueries = products.split(dqueries_CC)
        scale_kept_CH = scale * gates.kept(head, piece, H)
        dq_CH = scale_kept_CH * products(dout, state, transpose_right=True) + products(dqueries, k)
        yield
        dseen_k = products.split(-kept_CP * dv_CP)
        writes = products.round(to_exit_CP * error_CP)
        left = jnp.concatenate([dseen_k[0], *writes], 1)
        right = jnp.concatenate([*state, dstate[0]], 1)
        dk_CH = products((left,), (right,), transpose_right=True)
        yield
        symmetric = products.round(dkeys_CC + dkeys_CC.T)
        left = jnp.concatenate([*symmetric, dqueries[0].T], 1)
        dk_CH = dk_CH + products((left,), keys_queries)
        yield
        dout_CP = scale * dout[0].astype(jnp.float32)
        k_HC, q_HC = transpose(k), transpose((keys_queries[0][CHUNK:],))
        added_HP = products(k_HC, dseen_k) + products(q_HC, products.round(kept_CP * dout_CP))
        yield
        through_1P = gates.through(head, piece, P)
        carry_ref[head] = through_1P * dstate_HP + added_HP
        finished.add((head, piece))
        key_gradients.add(head, piece, dq_CH, dk_CH)
        within_CC = jnp.where(gates.strict, dqueries_CC * queries_CC, 0.0) + dkeys_CC * keys_CC
        outside_CP = dout_CP * seen_q_CP - dv_CP * seen_k_CP
        sums = (_row_sums(within_CC, outside_CP), _row_sums(through_exit_CP * error_CP))
        for i, column in enumerate((*sums, _row_sums(dv_CP * error_CP))):
            columns_ref[i, t, head : head + 1] = column
        entered_HP = states_ref[0, head, piece].astype(jnp.float32)
        through_11 = _row_sums(through_1P * _column_sums(dstate_HP * entered_HP))
        last_1C = jnp.where(gates.last, through_11, 0.0)
        rows_ref[head : head + 1, t] = last_1C - _column_sums(within_CC)

    pieces = reversed(range(blocks.pieces))
    order = [(head, piece) for piece in pieces for head in range(blocks.heads)]
    interleave([chain(*task) for task in order], blocks.skew)
    dsum_ref[0, 0] = columns_ref[0].T + rows_ref[...]
    dexit_ref[0, 0] = columns_ref[1].T
    dwrite_ref[0, 0] = columns_ref[2].T

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        dinitial_ref[0] = carry_ref[...]


class _KeyGradients:
    """Sums dq and dk over the value heads of a key head, and writes them after the last one."""

    def __init__(self, refs, blocks: Blocks, H: int):
        self.refs, self.blocks, self.H = refs, blocks, H
        self.arrived: dict[tuple[int, int], list] = {}

    def add(self, head: int, piece: int, *gradients_CH):
        key_head = head // self.blocks.group
        arrived = self.arrived.setdefault((key_head, piece), [])
        arrived.append(gradients_CH)
        if len(arrived) == self.blocks.heads // self.blocks.key_heads:
            t, h = _span(piece, CHUNK), _span(key_head, self.H)
            for ref, parts in zip(self.refs, zip(*arrived, strict=True), strict=True):
                ref[0, t, h] = functools.reduce(operator.add, parts).astype(ref.dtype)


def _span(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)


def _row_sums(*arrays):
    """Returns the row sums [C, 1]; arrays of one shape are added first."""
    if len({x.shape for x in arrays}) == 1:
        return jnp.sum(functools.reduce(operator.add, arrays), axis=1, keepdims=True)
    return sum(jnp.sum(x, axis=1, keepdims=True) for x in arrays)


def _column_sums(x):
    return jnp.sum(x, axis=0, keepdims=True)
