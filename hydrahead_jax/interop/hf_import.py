"""A Hugging Face folder in, ModelConfig and parameters out."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.hf_config import from_hf_config
from hydrahead_jax.interop.key_table import key_table, set_param, weight_shapes
from hydrahead_jax.interop.weights import Weights, open_weights, read_json
from hydrahead_jax.local_path import local_path

_FLOATS = ("F32", "BF16", "F16")
_INPUT, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def read_config(folder: str | Path) -> ModelConfig:
    """The config of a Qwen3 folder, or of a hybrid that `export_torch` wrote.

    Raises:
      UserError: no config.json, another kind of model, or a setting that is not supported.
    """
    path = local_path(folder) / "config.json"
    return from_hf_config(read_json(path), str(path))


def load_hf(
    folder: str | Path,
    dtype=None,
    place: Callable[[str, np.ndarray], jax.Array] | None = None,
) -> tuple[ModelConfig, dict]:
    """Reads config and parameters, one weight after the other.

    Args:
      folder: with config.json and model.safetensors, or shards and their index.
      dtype: of the parameters; as in the files if None.
      place: makes a parameter of its path, such as "layers/0/mixer/w_o_NHD", and its numbers;
        puts it on JAX's default device if None.

    Raises:
      UserError: as `read_config`; or a weight file that is missing or damaged, or weights that
        are missing, left over or of the wrong shape, all of them named.
    """
    folder = local_path(folder)
    config = read_config(folder)
    weights = open_weights(folder)
    _check(folder, config, weights)
    params = {}
    for row in key_table(config):
        row_dtype = jnp.float32 if dtype is not None and row.always_float32 else dtype
        arrays = row.layout.load(weights.read(row.name))
        for path, array in zip(row.paths, arrays, strict=True):
            if place is None:
                value = jnp.asarray(array, row_dtype)
            else:
                value = place("/".join(map(str, path)), np.asarray(array, row_dtype))
            set_param(params, path, value)
    return config, params


def _check(folder: Path, config: ModelConfig, weights: Weights) -> None:
    expected = weight_shapes(config)
    in_missing_files = {name for names in weights.missing_files.values() for name in names}
    found = {name: shape for name, shape in weights.shapes.items() if name in expected}
    problems = {
        "missing files": [
            f"{file} ({len(names)} weights)" for file, names in weights.missing_files.items()
        ],
        "missing weights": sorted(expected.keys() - found.keys() - in_missing_files),
        "unused weights": [
            name
            for name in weights.shapes
            if name not in expected and not _is_tied_copy(config, weights, name)
        ],
        "wrong shapes": [
            f"{name} is {shape} in place of {expected[name]}"
            for name, shape in found.items()
            if shape != expected[name]
        ],
        "unsupported number formats": [
            f"{name} is {weights.dtypes[name]}"
            for name in found
            if weights.dtypes[name] not in _FLOATS
        ],
    }
    listed = [f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if listed:
        raise UserError(
            f"{folder} does not hold the weights that its config.json asks for; {'; '.join(listed)}"
        )


def _is_tied_copy(config: ModelConfig, weights: Weights, name: str) -> bool:
    """Whether this is an output matrix that repeats the embeddings it is tied to."""
    if name != _OUTPUT or not config.tied_embeddings or _INPUT not in weights.shapes:
        return False
    return np.array_equal(weights.read(_OUTPUT), weights.read(_INPUT))
