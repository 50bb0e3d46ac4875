"""Defines shared-memory buffers, products and launches that the Hopper kernels have in common.

Everything on registers is in the layout of a wgmma accumulator: layouts are annotated, because
inference over a complete kernel takes minutes. Products have their left operand in registers (bf16)
or in shared memory, their right one in shared memory.
"""

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.varying import array_type, vary_alike

_OPERAND = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
_NARROW_OPERAND = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(64))


def operand(*shape: int):
    """Returns a bf16 buffer that wgmma and TMA read; the last axis is 32 or a multiple of 64."""
    transforms = _NARROW_OPERAND if shape[-1] == 32 else _OPERAND
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def vectors(*shape: int):
    """Returns a plain float32 buffer."""
    return plgpu.SMEM(shape, jnp.float32)


def registers(x):
    """States that `x` has the layout of a wgmma accumulator."""
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def rounded(x):
    return registers(x.astype(jnp.bfloat16))


def on_rows(x, shape):
    return registers(lax.broadcast_in_dim(x, shape, [0]))


def on_columns(x, shape):
    return registers(lax.broadcast_in_dim(x, shape, [1]))


def row_vector(ref):
    """Loads a vector that varies along the rows of an accumulator."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1))


def column_vector(ref):
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0))


def matrix(ref):
    """Loads a bf16 or float32 matrix of shared or global memory into registers."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)


def floats(ref):
    """Loads a bf16 buffer as float32."""
    return registers(registers(matrix(ref)).astype(jnp.float32))


def of_one_device(x):
    """Returns `x` as a loop can carry it under `jax.shard_map`.

    What a kernel loads is typed as varying over the mesh, what it computes from that is not.
    """
    return x * 1


def transposed(ref):
    return ref.transpose((1, 0))


def put(ref, x, *, interpret=False) -> None:
    """Stores to a plain buffer in shared or global memory."""
    if hasattr(plgpu, "store") and not interpret:
        plgpu.store(ref, x, optimized=False)
    else:
        ref[...] = x


def product(*terms, start=None, interpret):
    """Computes start + the sum of left @ right over the terms, in float32.

    The Mosaic GPU interpreter knows neither operands in registers nor accumulators that start
    with a value, so there it is computed as plain products.
    """
    if interpret:
        read = lambda x: x if isinstance(x, jax.Array) else x[...]
        total = sum(jnp.dot(read(a), read(b), preferred_element_type=jnp.float32) for a, b in terms)
        return registers(total if start is None else start + total)

    def accumulate(accumulator):
        for left, right in terms:
            plgpu.wgmma(accumulator, left, right)

    if start is not None:
        return registers(pl.run_state(accumulate)(plgpu.ACC.init(start)))

    def from_zero(accumulator):
        accumulate(accumulator)
        return accumulator[...]

    left, right = terms[0]
    return registers(
        pl.run_scoped(from_zero, plgpu.ACC((left.shape[0], right.shape[1]), jnp.float32))
    )


def meet(barrier) -> None:
    """Makes what either warpgroup has written to shared memory visible to the other one."""
    plgpu.commit_smem()
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


def copy_in(barrier, *copies) -> None:
    """Starts TMA copies (source, destination); the barrier counts one arrival for each."""
    for source, destination in copies:
        plgpu.copy_gmem_to_smem(source, destination, barrier)


def copy_out(*copies) -> None:
    """Starts TMA copies of shared memory that this warpgroup has written."""
    plgpu.commit_smem()
    for source, destination in copies:
        plgpu.copy_smem_to_gmem(source, destination)


def kernel(body, *inputs, name, grid, outputs, scratch, warpgroups=1, interpret=False):
    """Runs `body(*input_refs, *output_refs, *scratch_refs)` on a grid of named axes.

    Args:
      inputs: arrays or pytrees of them.
      grid: axis name -> size.
      outputs: (shape, dtype) of each result.
      warpgroups: how many a program has; their number is axis "warpgroup".
    """
    arrays = jax.tree.leaves(inputs)
    threads = {} if warpgroups == 1 else dict(num_threads=warpgroups, thread_name="warpgroup")
    results = plgpu.kernel(
        body,
        out_type=[array_type(shape, dtype, like=arrays) for shape, dtype in outputs],
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
        **threads,
    )(*inputs)
    return vary_alike(*arrays, *results)[len(arrays) :]
