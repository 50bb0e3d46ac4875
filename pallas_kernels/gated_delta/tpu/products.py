"""Computes matrix products of the TPU kernels, in as many bf16 passes as each needs.

A factor is a tuple of its parts: `(x,)` in bf16 or float32, or `(high, low)`, two bf16 arrays whose
sum has 16 bits of mantissa. A product of 128 columns fills half of a matrix unit 256 wide; parts
side by side fill it, so that three passes cost there what one does.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Products:
    """Says how factors are split and multiplied.

    Attributes:
      float32: every product in full float32; parts are then never split.
      packed: parts lie side by side in one product, for matrix units 256 wide; otherwise each
        pair of parts is a product of its own.
    """

    float32: bool
    packed: bool

    def round(self, x) -> tuple:
        """Makes a factor of one part."""
        return (x.astype(jnp.float32 if self.float32 else jnp.bfloat16),)

    def split(self, x_f32) -> tuple:
        """Makes a factor of two parts."""
        if self.float32:
            return (x_f32,)
        high = x_f32.astype(jnp.bfloat16)
        return high, (x_f32 - high.astype(jnp.float32)).astype(jnp.bfloat16)

    def parts(self, side_by_side, width: int) -> tuple:
        """Returns the factor whose parts stand side by side."""
        starts = range(0, side_by_side.shape[1], width)
        return tuple(side_by_side[:, start : start + width] for start in starts)

    def __call__(self, left: tuple, right: tuple, *, transpose_right: bool = False):
        """Computes left @ right, or left @ right^T, in float32.

        The product of two low parts is dropped.
        """
        dot = _dot_transposed if transpose_right else _dot
        if self.float32 or len(left) == len(right) == 1:
            return dot(left[0], right[0])
        if not self.packed:
            passes = [(a, b) for a in range(len(left)) for b in range(len(right)) if a + b < 2]
            return sum(dot(left[a], right[b]) for a, b in reversed(passes))
        contract, columns = (1, 0) if transpose_right else (0, 1)
        size = right[0].shape[columns]
        first = jnp.concatenate(right, columns)
        if len(left) == 2:
            second = [right[0], jnp.zeros_like(right[0])] if len(right) == 2 else right
            left = (jnp.concatenate(left, 1),)
            first = jnp.concatenate([first, jnp.concatenate(second, columns)], contract)
        result = dot(left[0], first)
        return result if len(right) == 1 else result[:, :size] + result[:, size:]


def transpose(factor: tuple) -> tuple:
    return tuple(part.T for part in factor)


def _dot(left, right, contract=((1,), (0,))):
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        left, right, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _dot_transposed(left, right):
    return _dot(left, right, ((1,), (1,)))
