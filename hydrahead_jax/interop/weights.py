"""Reads a folder of safetensors, single or sharded, one tensor at a time."""

import dataclasses
import os
import stat
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from hydrahead_jax import json_file
from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHT_FILES = "model*.safetensors*"
SHARD_BYTES = 5_000_000_000
_OTHER_FILES = ("pytorch_model*.bin*", "*.gguf", "*.pth", "*.pt", "consolidated*", "*.safetensors")
_PREFIX = "model."
_WITHOUT_PREFIX = ("embed_tokens.", "layers.", "norm.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Says what a folder holds; only `read` reads numbers.

    Names are those of Qwen3ForCausalLM; a folder of Qwen3Model has them without "model.".

    Attributes:
      files: the file of each weight.
      shapes: the shape of each weight.
      dtypes: the dtype of each weight, in the letters of safetensors, such as "BF16".
      missing_files: files that the index names but that do not exist, with their weights.
      stored: the name of each weight in its file.
    """

    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    missing_files: dict[str, list[str]]
    stored: dict[str, str]

    def read(self, name: str) -> np.ndarray:
        """Reads one weight in the dtype of the file."""
        with _open(self.files[name]) as handle:
            return handle.get_tensor(self.stored[name])


def open_weights(folder: Path) -> Weights:
    """Reads the headers of all weight files.

    Raises:
      UserError: the folder has no safetensors, the index is wrong, two files hold the same weight,
        or a file cannot be read.
    """
    found = Weights(files={}, shapes={}, dtypes={}, missing_files={}, stored={})
    for path, names in _shards(folder).items():
        if not _exists(path):
            found.missing_files[path.name] = [_full_name(name) for name in names]
            continue
        with _open(path) as handle:
            for stored in handle.keys():
                name, part = _full_name(stored), handle.get_slice(stored)
                if name in found.files:
                    raise UserError(
                        f"{path} holds {shown(stored, 60)}, which {found.files[name].name} holds "
                        f"as {shown(found.stored[name], 60)}; remove one of the two"
                    )
                found.files[name], found.stored[name] = path, stored
                found.shapes[name] = tuple(part.get_shape())
                found.dtypes[name] = part.get_dtype()
    return found


def read_json(path: Path) -> dict:
    """Raises UserError where there is no such file or it holds no JSON object."""
    fields = json_file.read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} must hold a JSON object")
    return fields


def _exists(path: Path) -> bool:
    """Says whether there is such a file; raises UserError for a link that leads nowhere."""
    try:
        about = os.lstat(path)
    except OSError:
        return False
    if stat.S_ISLNK(about.st_mode) and not path.exists():
        raise UserError(
            f"{path} is a link that leads nowhere, as in a copy of the Hub's cache; copy or "
            "download the file itself"
        )
    return True


def _full_name(stored: str) -> str:
    return _PREFIX + stored if stored.startswith(_WITHOUT_PREFIX) else stored


def _shards(folder: Path) -> dict[Path, list[str]]:
    """Returns each weight file that should exist, with the weights that the index puts into it."""
    if _exists(folder / SINGLE):
        return {folder / SINGLE: []}
    if not _exists(folder / INDEX):
        others = [path.name for pattern in _OTHER_FILES for path in sorted(folder.glob(pattern))]
        instead = f" in place of {others[0]}" if others else ""
        raise UserError(
            f"{folder} holds neither {SINGLE} nor {INDEX}; save the model as safetensors{instead}"
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} has no weight_map; copy or download it again")
    shards = {}
    for name, file in weight_map.items():
        inside = os.path.normpath(file) if isinstance(file, str) and file else ".."
        if os.path.isabs(inside) or inside.split(os.sep)[0] in ("..", "."):
            raise UserError(
                f"{folder / INDEX} puts {shown(name, 60)} into {shown(str(file), 60)!r}, which is "
                "not a file of the folder; copy or download it again"
            )
        shards.setdefault(folder / inside, []).append(name)
    return shards


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); copy or download it again"
        ) from error
