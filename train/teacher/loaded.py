"""Loads the teacher's weights straight from their files to the devices."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from hydrahead_jax.interop import load_hf
from hydrahead_jax.sharding import Layout


class LoadedTeacher:
    """Loads a Hugging Face folder in float32, on one device or split over a mesh.

    A process holds one weight at a time beside its devices' shards.

    Attributes:
      config: config of the teacher.
      params: parameters of the teacher, until they are taken.
      layout: layout of the parameters.
      checksum: checksum of all numbers; the same on every layout.
    """

    def __init__(self, folder: Path, layout: Layout | None):
        self.layout = layout
        self._checksums: dict[str, int] = {}
        self.config, self.params = load_hf(folder, jnp.float32, self._place)
        every = sorted(self._checksums.items())
        self.checksum = zlib.crc32(repr(every).encode())

    def take(self) -> dict:
        """Returns the parameters and drops its own reference to them."""
        params, self.params = self.params, None
        return params

    def _place(self, path: str, array: np.ndarray) -> jax.Array:
        array = np.ascontiguousarray(array)
        self._checksums[path] = zlib.crc32(array.reshape(-1).view(np.uint8))
        if self.layout is None:
            return jnp.asarray(array)
        spec = self.layout.param_spec(path, array.shape)
        sharding = NamedSharding(self.layout.mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
