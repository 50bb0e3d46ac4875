"""Keeps matrix products in flight while a warpgroup computes."""

from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.hopper.blocks import product, registers


class Product(NamedTuple):
    """Asks for start + the sum of left @ right over the terms; left may lie in registers."""

    terms: tuple
    start: jax.Array | None = None


def in_flight(*products: Product, uses, interpret) -> list:
    """Starts all products and runs the use of each while those after it are still computed.

    What a product reads from registers must be rounded before any of them starts: the assembler
    makes products wait for each other otherwise.

    Args:
      uses: for each product a function of its sum and of the results of the uses before.

    Returns:
      The results of the uses.
    """
    if interpret:
        sums = [product(*x.terms, start=x.start, interpret=True) for x in products]
        return _used(uses, sums)
    products = [Product(_settled(x.terms), x.start) for x in products]

    def run(*accumulators):
        for x, accumulator in zip(products, accumulators, strict=True):
            if x.start is not None:
                accumulator[...] = x.start
        for x, accumulator in zip(products, accumulators, strict=True):
            for left, right in x.terms:
                plgpu.wgmma(accumulator, left, right)
        return _used(uses, _awaited(products, accumulators))

    shapes = [(x.terms[0][0].shape[0], x.terms[0][1].shape[1]) for x in products]
    return pl.run_scoped(run, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def _settled(terms):
    settle = lambda x: registers(lax.optimization_barrier(x)) if isinstance(x, jax.Array) else x
    return tuple((settle(left), right) for left, right in terms)


def _awaited(products, accumulators):
    after = sum(len(x.terms) for x in products)
    for x, accumulator in zip(products, accumulators, strict=True):
        after -= len(x.terms)
        yield registers(plgpu.wgmma_accumulator_load(accumulator, wait_n=after))


def _used(uses, sums) -> list:
    results = []
    for use, total in zip(uses, sums, strict=True):
        results.append(use(total, *results))
    return results


def kept(total, *_):
    """Returns the sum unchanged: the use of a product that needs no further step."""
    return total
