"""Runs the decode step of the gated delta rule on TPU: one read and one write of the state.

The matrix units stay idle. A step is 4 H P multiply-adds on 8 H P bytes of state, far below what
keeps memory busy, and on the vector units they are exact in float32.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated_delta.reference import gated_delta_step_reference
from pallas_kernels.gated_delta.step_kernels import check_arrays
from pallas_kernels.reference_gradient import with_gradient_of
from pallas_kernels.tpu_devices import check_device
from pallas_kernels.varying import array_type

MAX_HEADS = 16
BLOCK_BYTES = 1 << 20


def gated_delta_step_tpu(
    q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, state_BNHP, *, scale, interpret=False
):
    """Computes `api.gated_delta_step`; writes the new state over the old if the caller donates it.

    Raises:
      NotImplementedError: the kernel is not for this device, dtype or head dimension.
    """
    check_device(q_BKH, interpret)
    check_arrays(q=q_BKH, k=k_BKH, v=v_BNP)
    arrays = (q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, state_BNHP)
    return _call(*arrays, scale=scale, interpret=interpret)


@with_gradient_of(gated_delta_step_reference)
def _call(q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, state_BNHP, *, scale, interpret):
    """Calls the kernel with the heads of all rows on one axis.

    Head x of B * N reads key head x // (N / K) of B * K. M are the blocks of heads, that is the
    programs; X the heads of one.
    """
    B, N, H, P = state_BNHP.shape
    group = N // k_BKH.shape[1]
    heads = _heads_a_program(B * N, group, H * P)
    key_heads = max(1, heads // group)
    programs = B * N // heads
    gates_BN2 = jnp.stack([jnp.exp(log_decay_BN), beta_BN], axis=-1)
    gates_M2X = jnp.swapaxes(gates_BN2.reshape(programs, heads, 2), 1, 2)
    keys = pl.BlockSpec((1, key_heads, H), lambda m: (m * heads // (group * key_heads), 0, 0))
    own = lambda *shape: pl.BlockSpec((1, *shape), lambda m: (m, *[0] * len(shape)))
    inputs = (
        q_BKH.reshape(-1, key_heads, H),
        k_BKH.reshape(-1, key_heads, H),
        v_BNP.reshape(programs, heads, P),
        gates_M2X,
        state_BNHP.reshape(programs, heads, H, P),
    )
    out = functools.partial(array_type, like=inputs)
    out_MXP, state_MXHP = pl.pallas_call(
        functools.partial(_kernel, scale=scale),
        grid=(programs,),
        in_specs=[keys, keys, own(heads, P), own(2, heads), own(heads, H, P)],
        out_specs=[own(heads, P), own(heads, H, P)],
        out_shape=[out(inputs[2].shape, v_BNP.dtype), out(inputs[4].shape, jnp.float32)],
        input_output_aliases={4: 1},
        name="gated_delta_step",
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    )(*inputs)
    return out_MXP.reshape(v_BNP.shape), state_MXHP.reshape(state_BNHP.shape)


def _heads_a_program(heads: int, group: int, state_size: int) -> int:
    """Returns the most heads that fit a program, taking complete key heads or parts of one."""
    fitting = [
        n
        for n in range(1, min(MAX_HEADS, heads) + 1)
        if heads % n == 0
        and (n % group == 0 or group % n == 0)
        and (n == 1 or 4 * n * state_size <= BLOCK_BYTES)
    ]
    return max(fitting)


def _kernel(q_ref, k_ref, v_ref, gates_ref, state_ref, out_ref, new_state_ref, *, scale):
    """Runs the step; the state's rows lie on sublanes, so q and k are turned into columns."""
    group = v_ref.shape[1] // q_ref.shape[1]
    v_XP = v_ref[0].astype(jnp.float32)
    columns = [ref[0].astype(jnp.float32).T for ref in (q_ref, k_ref)]
    outputs = []
    for head in range(v_ref.shape[1]):
        q_H1, k_H1 = (x[:, head // group : head // group + 1] for x in columns)
        decay_11, beta_11 = (gates_ref[0, i : i + 1, head : head + 1] for i in range(2))
        state_HP = decay_11 * state_ref[0, head]
        read_1P = jnp.sum(k_H1 * state_HP, axis=0, keepdims=True)
        write_1P = beta_11 * (v_XP[head : head + 1] - read_1P)
        state_HP = state_HP + k_H1 * write_1P
        new_state_ref[0, head] = state_HP
        outputs.append(scale * jnp.sum(q_H1 * state_HP, axis=0, keepdims=True))
    out_ref[0] = jnp.concatenate(outputs).astype(out_ref.dtype)
