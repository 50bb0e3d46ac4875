"""A folder of safetensors, single or sharded, read one tensor at a time."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from hydrahead_jax.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
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
    if (folder / SINGLE).exists():
        return {folder / SINGLE: []}
    if not (folder / INDEX).exists():
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} has no weight_map")
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
