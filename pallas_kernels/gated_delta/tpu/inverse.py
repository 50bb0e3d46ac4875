"""Computes the unit lower triangular inverse inside a TPU kernel.

Blocks of 16 rows lie packed side by side on the lanes and are inverted row by row on the vector
unit; then pairs of blocks are merged by matrix products until one is left. As in `inverse.py`, no
power of the matrix is ever formed.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated_delta.tpu.products import Products

BLOCK = 16
SUBLANES = 8


def unit_lower_inverse(lower_CC, products: Products):
    """Returns (I + lower)^-1 as a factor, as a coroutine; ignores the diagonal and above."""
    size = lower_CC.shape[0]
    packed = _pack(lower_CC, BLOCK)
    row, column = _iota(packed.shape, 0), _iota(packed.shape, 1) % BLOCK
    inverse = yield from _substitute(jnp.where(row > column, packed, 0.0))
    block = BLOCK
    while block < size:
        inverse = yield from _merge(lower_CC, inverse, block, products)
        block *= 2
    return inverse


def _substitute(lower_RC):
    """Computes row i of each block's inverse as e_i minus row i of `lower` times the rows above."""
    shape = (SUBLANES, lower_RC.shape[1])
    lane, sublane = _iota(shape, 1), _iota(shape, 0)
    tiles = range(BLOCK // SUBLANES)
    lower = [lower_RC[SUBLANES * r : SUBLANES * (r + 1)] for r in tiles]
    inverse = [((sublane + SUBLANES * r) == lane % BLOCK).astype(jnp.float32) for r in tiles]
    for i in range(BLOCK - 1):
        tile, row = divmod(i, SUBLANES)
        solved = jnp.broadcast_to(inverse[tile][row : row + 1], shape)
        column = lane // BLOCK * BLOCK + i
        for r in tiles[tile + (row == SUBLANES - 1) :]:
            weight = jnp.take_along_axis(lower[r], column, axis=1)
            inverse[r] = inverse[r] - weight * solved
        if i % 4 == 3:
            yield
    return jnp.concatenate(inverse, 0)


def _merge(lower_CC, inverse, block: int, products: Products):
    """Merges the inverses of diagonal blocks, packed [block, C], to those of twice the size.

    [[X, 0], [-Y L X, Y]] is the inverse of [[X^-1, 0], [L, Y^-1]]. The last merge returns the
    factor of the full matrix.
    """
    size = lower_CC.shape[0]
    side = _iota((block, size), 1) // block
    corner = jnp.zeros((block, size), jnp.float32)
    for b in range(1, size // block, 2):
        corner = jnp.where(side == b - 1, lower_CC[b * block : (b + 1) * block], corner)
    parts = products.split(inverse)
    right = tuple(_unpack(part, block, row_parity=0) for part in parts)
    product = products(products.split(corner), right)
    yield
    right = tuple(_unpack(part, block, row_parity=1) for part in products.split(product))
    left = tuple(_on_blocks(1, part, block) for part in parts)
    product = -products(left, right)
    yield
    if 2 * block == size:
        corners = products.split(product)
        return tuple(
            jnp.concatenate([_on_blocks(0, part, block), _on_blocks(1, part, block, corner)], 0)
            for part, corner in zip(parts, corners, strict=True)
        )
    below = _on_blocks(1, inverse, block, product)
    return jnp.concatenate([_on_blocks(0, inverse, block), below], 0)


def _pack(matrix_CC, block: int):
    """Packs the diagonal blocks of [C, C] side by side into [block, C]."""
    size = matrix_CC.shape[0]
    side = _iota((block, size), 1) // block
    packed = matrix_CC[:block]
    for b in range(1, size // block):
        packed = jnp.where(side == b, matrix_CC[b * block : (b + 1) * block], packed)
    return packed


def _unpack(packed, block: int, *, row_parity: int):
    """Unpacks [block, C] to [C, C].

    Row blocks of one parity take the lanes of their pair's first block.
    """
    words = _words(packed)
    side = _iota(words.shape, 1) // block
    rows = [
        jnp.where((side == b - row_parity) & (b % 2 == row_parity), words, 0)
        for b in range(packed.shape[1] // block)
    ]
    return _unwords(jnp.concatenate(rows, 0), packed.dtype)


def _on_blocks(parity: int, packed, block: int, other=None):
    """Selects `packed` on the lanes of blocks of this parity, elsewhere `other` or zero."""
    words = _words(packed)
    mine = _iota(words.shape, 1) // block % 2 == parity
    return _unwords(jnp.where(mine, words, 0 if other is None else _words(other)), packed.dtype)


def _words(x):
    """Joins pairs of bf16 rows to 32-bit words, on which selects by lane cost half as much."""
    return pltpu.bitcast(x, jnp.int32) if x.dtype == jnp.bfloat16 else x


def _unwords(x, dtype):
    return pltpu.bitcast(x, dtype) if dtype == jnp.bfloat16 else x


def _iota(shape, axis: int):
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
