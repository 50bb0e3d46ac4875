"""Computes the inverse inside the chunked delta rule, safely for any keys."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.varying import vary_alike

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def unit_lower_inverse(lower):
    """Returns (I + lower)^-1 for strictly lower triangular matrices `lower` of shape [..., C, C].

    Rows inside a block of 16 by substitution, then pairs of blocks merged until one is left. No
    power of `lower` is ever formed: with correlated keys the powers reach 1e8 while the inverse
    stays near 1, so Neumann and Newton series lose everything.
    """
    size = lower.shape[-1]
    block = min(16, size)
    if size % block or (size // block) & (size // block - 1):
        raise ValueError(f"a chunk of {size} is not 16 times a power of two, nor below 16")
    inverse = _substitute(_diagonal_blocks(lower, block))
    while block < size:
        pairs = _diagonal_blocks(lower, 2 * block)
        corner = pairs[..., block:, :block]
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -_matmul(second, _matmul(corner, first))
        top = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        block *= 2
    return inverse[..., 0, :, :]


def _diagonal_blocks(matrix, block: int):
    """Returns the diagonal blocks of [..., C, C] as [..., C / block, block, block]."""
    starts = range(0, matrix.shape[-1], block)
    blocks = [matrix[..., i : i + block, i : i + block] for i in starts]
    return jnp.stack(blocks, axis=-3)


def _substitute(lower):
    """Computes row i of the inverse as e_i minus row i of `lower` times the rows above."""
    unit = jnp.broadcast_to(jnp.eye(lower.shape[-1], dtype=lower.dtype), lower.shape)
    unit, lower = vary_alike(unit, lower)

    def row(i, inverse):
        read = lambda matrix: jax.lax.dynamic_index_in_dim(matrix, i, axis=-2)
        new = read(unit) - _matmul(read(lower), inverse)
        return jax.lax.dynamic_update_index_in_dim(inverse, new, i, axis=-2)

    return jax.lax.fori_loop(1, lower.shape[-1], row, unit)


def _forward(lower):
    inverse = unit_lower_inverse(lower)
    return inverse, inverse


def _backward(inverse, cotangent):
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (jnp.tril(-_matmul(_matmul(transposed, cotangent), transposed), -1),)


unit_lower_inverse.defvjp(_forward, _backward)
