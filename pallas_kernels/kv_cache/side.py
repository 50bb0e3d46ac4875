"""Defines what a format says about one side of a cache: its keys or its values."""

import abc
import math

import jax
import jax.numpy as jnp

from pallas_kernels.kv_cache.hadamard import hadamard

CHANNELS_A_GROUP = 32


class Side(abc.ABC):
    """Encodes vectors of the last axis, each by itself, and decodes them.

    Attributes:
      rotated: whether vectors are stored in the basis that `hadamard` turns them into. Scores need
        no decoding into the original one: rotate the query in place of the keys, and the output
        back in place of the values.
    """

    rotated: bool = False

    @abc.abstractmethod
    def encode(self, x_XH) -> tuple[jax.Array, ...]:
        """Returns the parts that are stored, each with the leading axes and a last one of its own.

        Raises:
          ValueError: the format does not take vectors of H channels.
        """

    @abc.abstractmethod
    def stored(self, parts, dtype=jnp.float32) -> jax.Array:
        """Returns the vectors [X, H] in the basis in which they are stored."""

    def decode(self, parts) -> jax.Array:
        """Returns the vectors [X, H] in the original basis, float32."""
        return self.rotate(self.stored(parts))

    def rotate(self, x_XH) -> jax.Array:
        """Turns float32 vectors from the original basis to the stored one, or back."""
        return hadamard(x_XH) if self.rotated else x_XH.astype(jnp.float32)

    def bytes_a_vector(self, H: int, dtype=jnp.bfloat16) -> int:
        """Returns the bytes that a vector takes; `dtype` is that of vectors stored as given."""
        parts = jax.eval_shape(self.encode, jax.ShapeDtypeStruct((H,), dtype))
        return sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)


def grouped(x_XH, channels: int):
    """Returns the vectors as groups [X, G, channels].

    Raises:
      ValueError: the groups do not divide H.
    """
    *lead, H = x_XH.shape
    if H % channels:
        raise ValueError(f"groups of {channels} channels do not divide a head dimension of {H}")
    return x_XH.reshape(*lead, H // channels, channels)


def largest_magnitude(x_XH):
    """Returns the largest magnitude of the last axis, and 0 if a NaN or inf is there.

    A maximum alone would not do: on some machines it passes over NaN.
    """
    is_finite_X = jnp.all(jnp.isfinite(x_XH), axis=-1)
    return jnp.where(is_finite_X, jnp.max(jnp.abs(x_XH), axis=-1), 0.0)
