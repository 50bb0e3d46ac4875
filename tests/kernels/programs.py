"""Small programs that a fresh process can import, for the tests of the compilers' reports."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl


def wgmma_matmul(a_MK, b_KN):
    """64 x 64 x 64 in one warpgroup product group, through Mosaic GPU."""
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


def refuses(x):
    raise NotImplementedError(f"dtype {x.dtype}; none is accepted")


def fails(x):
    raise ValueError(f"no such shape {x.shape}")
