"""A folder of safetensors, single or sharded: read one tensor at a time, written shard by shard."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hydrahead_jax.errors import UserError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = "model*.safetensors*"
SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What a folder holds; only `read` reads numbers.

    Attributes:
      files: the file of each weight.
      shapes: of each weight.
      dtypes: of each weight, in the letters of safetensors, such as "BF16".
      missing_files: files that the index names and that are not there, with their weights.
    """

    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    missing_files: dict[str, list[str]]

    def read(self, name: str) -> np.ndarray:
        """One weight, in the dtype of the file."""
        with _open(self.files[name]) as handle:
            return handle.get_tensor(name)


def open_weights(folder: Path) -> Weights:
    """Reads the headers.

    Raises:
      UserError: no safetensors there, or a file that cannot be read.
    """
    files, shapes, dtypes, missing = {}, {}, {}, {}
    for path, names in _shards(folder).items():
        if not path.exists():
            missing[path.name] = names
            continue
        with _open(path) as handle:
            for name in handle.keys():
                part = handle.get_slice(name)
                files[name] = path
                shapes[name] = tuple(part.get_shape())
                dtypes[name] = part.get_dtype()
    return Weights(files=files, shapes=shapes, dtypes=dtypes, missing_files=missing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A weight to be written: `make` is called when its shard is."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(folder: Path, tensors: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes one file, or shards of up to `shard_bytes` and their index; holds one shard."""
    shards = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.bytes for t in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    single = len(shards) == 1
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = _SINGLE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {t.name: np.ascontiguousarray(t.make(), t.dtype) for t in shard}
        save_file(arrays, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(arrays, file)
    if not single:
        total = sum(tensor.bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """Raises UserError where there is no such file or it holds no JSON object."""
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no JSON object")
    return fields


def _shards(folder: Path) -> dict[Path, list[str]]:
    """Each weight file that should be there, with the weights that the index puts into it."""
    if (folder / _SINGLE).exists():
        return {folder / _SINGLE: []}
    if not (folder / _INDEX).exists():
        raise UserError(f"{folder} holds neither {_SINGLE} nor {_INDEX}")
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / _INDEX} has no weight_map")
    shards = {}
    for name, file in weight_map.items():
        shards.setdefault(folder / str(file), []).append(name)
    return shards


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); copy or download it again"
        ) from error
