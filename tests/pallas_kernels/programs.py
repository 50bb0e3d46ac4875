"""Defines small programs that a fresh process can import, to test the compilers' reports."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def wgmma_matmul(a_MK, b_KN):
    """Multiplies 64 x 64 x 64 in one warpgroup product group, through Mosaic GPU."""
    import jax.experimental.pallas.mosaic_gpu as plgpu

    def small_matmul(a_ref, b_ref, out_ref, a_tile, b_tile, out_tile, arrived):
        plgpu.copy_gmem_to_smem(a_ref, a_tile, arrived)
        plgpu.copy_gmem_to_smem(b_ref, b_tile, arrived)
        plgpu.barrier_wait(arrived)

        def multiply(acc):
            plgpu.wgmma(acc, a_tile, b_tile)
            return acc[...]

        out_tile[...] = pl.run_scoped(multiply, plgpu.ACC((64, 64), jnp.float32)).astype(a_MK.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_tile, out_ref)
        plgpu.wait_smem_to_gmem(0)

    tiling = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    tile = plgpu.SMEM((64, 64), a_MK.dtype, transforms=tiling)
    return plgpu.kernel(
        small_matmul,
        out_type=jax.ShapeDtypeStruct((64, 64), a_MK.dtype),
        scratch_types=(tile, tile, tile, plgpu.Barrier(num_arrivals=2)),
        grid=(1,),
        grid_names=("x",),
    )(a_MK, b_KN)


def tpu_matmul(a_MK, b_KN):
    """Multiplies in bf16 on a grid of 8 x 8 blocks of 512 x 512, with all of K at once."""

    def block_product(a_ref, b_ref, out_ref):
        product = jnp.dot(a_ref[...], b_ref[...], preferred_element_type=jnp.float32)
        out_ref[...] = product.astype(out_ref.dtype)

    K = a_MK.shape[1]
    return pl.pallas_call(
        block_product,
        out_shape=jax.ShapeDtypeStruct((4096, 4096), a_MK.dtype),
        grid=(8, 8),
        in_specs=[
            pl.BlockSpec((512, K), lambda i, j: (i, 0)),
            pl.BlockSpec((K, 512), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((512, 512), lambda i, j: (i, j)),
        name="tpu_matmul",
    )(a_MK, b_KN)


def tpu_loop_and_branch(x_MK):
    """Multiplies 7 times in a loop in each of 16 grid steps; step 3 writes zeros instead."""

    def powers(x_ref, out_ref):
        x = x_ref[...]
        multiply = lambda _, y: jnp.dot(y, x, preferred_element_type=jnp.float32).astype(y.dtype)
        y = jax.lax.fori_loop(0, 7, multiply, x)

        @pl.when(pl.program_id(0) == 3)
        def zeros():
            out_ref[...] = jnp.zeros_like(out_ref)

        @pl.when(pl.program_id(0) != 3)
        def values():
            out_ref[...] = jnp.exp(y.astype(jnp.float32))

    block = pl.BlockSpec((256, 256), lambda i: (i, 0))
    return pl.pallas_call(
        powers,
        out_shape=jax.ShapeDtypeStruct(x_MK.shape, jnp.float32),
        grid=(16,),
        in_specs=[block],
        out_specs=block,
        name="powers",
    )(x_MK)


KINDS = (11, 12, 12, 11, 12, 0, 0, 12)
FIRST = 1 << 20


def tpu_kinds(x_MK):
    """Runs a grid of 8 over a list of kinds, which say how often a step multiplies.

    Kind 11 multiplies by itself once, 12 three times, 0 not at all. The first step and the fifth
    also have a bit set, and fill the result with zeros.
    """
    steps = [kind | (FIRST if n in (0, 4) else 0) for n, kind in enumerate(KINDS)]

    def products(steps_ref, x_ref, out_ref):
        step = steps_ref[pl.program_id(0)]
        x = x_ref[...]

        @pl.when((step & FIRST) != 0)
        def start():
            out_ref[...] = jnp.zeros_like(out_ref)

        for kind, times in ((11, 1), (12, 3)):

            @pl.when((step & (FIRST - 1)) == kind)
            def multiply(times=times):
                for scale in range(1, times + 1):
                    out_ref[...] += jnp.dot(x * scale, x, preferred_element_type=jnp.float32)

    return pl.pallas_call(
        products,
        out_shape=jax.ShapeDtypeStruct(x_MK.shape, jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(len(KINDS),),
            in_specs=[pl.BlockSpec((256, 256), lambda i, steps: (i, 0))],
            out_specs=pl.BlockSpec((256, 256), lambda i, steps: (i, 0)),
        ),
        name="kinds",
    )(jnp.array(steps, jnp.int32), x_MK)


def tpu_scan(a_MK, b_KN):
    """Runs the matmul 5 times in an XLA loop."""

    def step(a_MK, x):
        product_MN = tpu_matmul(a_MK, b_KN)
        return (product_MN[:, : a_MK.shape[1]] * x).astype(a_MK.dtype), jnp.sum(product_MN)

    return jax.lax.scan(step, a_MK, jnp.arange(5.0))


def refuses(x):
    raise NotImplementedError(f"dtype {x.dtype}; none is accepted")


def fails(x):
    raise ValueError(f"no such shape {x.shape}")
