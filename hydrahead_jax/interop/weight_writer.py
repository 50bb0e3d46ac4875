"""Writes safetensors one tensor at a time, in one file or in shards and their index."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from hydrahead_jax.interop.weights import INDEX, SHARD_BYTES, SINGLE
from hydrahead_jax.json_file import write_json

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_ALIGNMENT = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """Says what to write: `make` is called when its turn comes, and its result is freed at once."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(folder: Path, tensors: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes one file, or shards of up to `shard_bytes` and their index; holds one tensor."""
    shards = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.bytes for t in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    single = len(shards) == 1
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard)
        weight_map |= {tensor.name: file for tensor in shard}
    if not single:
        total = sum(tensor.bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


def _write_file(path: Path, tensors: list[Tensor]) -> None:
    """Writes the format: the header's length in 8 bytes, the header as JSON, the numbers.

    The library's own writer takes all tensors of a file at once, twice over, and makes a file that
    its owner alone can read. Like the library, this function writes wider numbers first, so that
    each is aligned.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        offsets = [end, end := end + tensor.bytes]
        dtype = _NAMES[tensor.dtype.name]
        header[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.make(), tensor.dtype)
            if array.shape != tensor.shape:
                raise ValueError(f"{tensor.name} is {array.shape} in place of {tensor.shape}")
            file.write(array.reshape(-1).view(np.uint8))
