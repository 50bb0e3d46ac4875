"""Runs the decode step of the gated delta rule on Hopper: one read and one write of the state.

A warpgroup has all rows and some columns of one head's state in registers. A step is 4 H P
multiply-adds on 8 H P bytes of state, far below what keeps memory busy: the tensor cores stay idle
and everything is exact in float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.reference import gated_delta_step_reference
from pallas_kernels.gated_delta.step_kernels import check_arrays
from pallas_kernels.hopper.machine import check_machine, interpreter
from pallas_kernels.reference_gradient import with_gradient_of
from pallas_kernels.varying import array_type, vary_alike

COLUMNS = 32


def gated_delta_step_gpu(
    q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, state_BNHP, *, scale, interpret=False
):
    """Computes `api.gated_delta_step`; writes the new state over the old if the caller donates it.

    Under `jax.shard_map` it never does: mutable arrays do not vary over a mesh.

    Raises:
      NotImplementedError: the kernel is not for this device, jax, dtype or head dimension.
    """
    check_machine(q_BKH, interpret)
    check_arrays(q=q_BKH, k=k_BKH, v=v_BNP)
    arrays = (q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, state_BNHP)
    return _call(*arrays, scale=scale, interpret=interpreter(interpret))


@with_gradient_of(gated_delta_step_reference)
def _call(q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, state_BNHP, *, scale, interpret):
    import jax.experimental.pallas.mosaic_gpu as plgpu

    B, N, _, P = state_BNHP.shape
    gates_BN2 = jnp.stack([jnp.exp(log_decay_BN), beta_BN], axis=-1)
    q_BKH = q_BKH.astype(jnp.float32) * scale
    inputs = (q_BKH, *(x.astype(jnp.float32) for x in (k_BKH, v_BNP, gates_BN2)))
    arrays = (*inputs, state_BNHP)
    in_place = not jax.typeof(state_BNHP).manual_axis_type.varying
    out_types = [v_BNP.shape] if in_place else [v_BNP.shape, state_BNHP.shape]
    state_ref = jax.new_ref(state_BNHP) if in_place else state_BNHP
    results = plgpu.kernel(
        functools.partial(_kernel, group=N // k_BKH.shape[1], interpret=bool(interpret)),
        out_type=[array_type(shape, jnp.float32, like=arrays) for shape in out_types],
        scratch_types=[plgpu.SMEM((COLUMNS,), jnp.float32)],
        grid=(B, N, P // COLUMNS),
        grid_names=("b", "n", "block"),
        kernel_name="gated_delta_step",
        interpret=interpret,
    )(*inputs, state_ref)
    if in_place:
        results = (*results, jax.freeze(state_ref))
    out_BNP, state_BNHP = vary_alike(*arrays, *results)[len(arrays) :]
    return out_BNP.astype(v_BNP.dtype), state_BNHP


def _kernel(q_BKH, k_BKH, v_BNP, gates_BN2, state_BNHP, out_BNP, *refs, group, interpret):
    """Runs the step; `refs` are the new state, unless it replaces the old one, and a buffer."""
    import jax.experimental.pallas.mosaic_gpu as plgpu

    from pallas_kernels.gated_delta.gpu import blocks

    (*new_state, out_P) = refs
    new_BNHP = new_state[0] if new_state else state_BNHP
    b, n, block = (jax.lax.axis_index(axis) for axis in ("b", "n", "block"))
    columns = pl.ds(block * COLUMNS, COLUMNS)
    shape = (state_BNHP.shape[2], COLUMNS)
    key_head = jax.lax.div(n, jnp.int32(group))
    vector = lambda ref, axis: plgpu.load(
        ref, layout=plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False
    )
    q_H1, k_H1 = (blocks.on_rows(vector(x.at[b, key_head], 0), shape) for x in (q_BKH, k_BKH))
    v_P = vector(v_BNP.at[b, n, columns], 1)
    state_HP = blocks.matrix(state_BNHP.at[b, n, :, columns])
    state_HP = blocks.registers(state_HP * gates_BN2[b, n, 0])
    read_P = jnp.sum(blocks.registers(state_HP * k_H1), axis=0)
    write_P = (v_P - read_P) * gates_BN2[b, n, 1]
    state_HP = blocks.registers(state_HP + k_H1 * blocks.on_columns(write_P, shape))
    blocks.put(new_BNHP.at[b, n, :, columns], state_HP, interpret=interpret)
    out_P[...] = jnp.sum(blocks.registers(state_HP * q_H1), axis=0)
    blocks.copy_out((out_P, out_BNP.at[b, n, columns]))
    plgpu.wait_smem_to_gmem(0)
