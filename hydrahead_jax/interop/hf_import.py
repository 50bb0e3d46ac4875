"""Reads ModelConfig and parameters from a Hugging Face folder."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.hf_config import from_hf_config
from hydrahead_jax.interop.key_table import key_table, set_param, weight_shapes
from hydrahead_jax.interop.not_finite import not_finite
from hydrahead_jax.interop.weights import Weights, open_weights, read_json
from hydrahead_jax.local_path import local_path
from hydrahead_jax.text_files.names import shown

_FLOATS = ("F32", "BF16", "F16")
_INPUT, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_LONGEST = 240  # of a folder and its problems; with the words around them 300


def read_config(folder: str | Path) -> ModelConfig:
    """Reads the config of a Qwen3 folder, or of a hybrid that `export_torch` wrote.

    Raises:
      UserError: no config.json, another kind of model, or a setting that is not supported.
    """
    folder = local_path(folder)
    if not folder.exists():
        how = ""
        if _HUB_ID.fullmatch(str(folder)):
            how = ", or download a model of the Hub by `hf download ID --local-dir FOLDER`"
        raise UserError(f"there is no folder {folder}; check the path{how}")
    path = folder / "config.json"
    return from_hf_config(read_json(path), str(path))


def load_hf(
    folder: str | Path, dtype=None, place: Callable[[str, np.ndarray], jax.Array] | None = None
) -> tuple[ModelConfig, dict]:
    """Reads config and parameters, one weight after the other.

    Args:
      folder: a folder with config.json and model.safetensors, or shards and their index.
      dtype: dtype of the parameters; as in the files if None.
      place: makes a parameter of its path, such as "layers/0/mixer/w_o_NHD", and its numbers;
        puts it on JAX's default device if None.

    Raises:
      UserError: as `read_config`; or a weight file that is missing or damaged; weights that are
        missing, left over, of the wrong shape or not finite, the first of each kind named.
    """
    folder = local_path(folder)
    config = read_config(folder)
    weights = open_weights(folder)
    _check(folder, config, weights)
    params, flawed = {}, []
    for row in key_table(config):
        weight = weights.read(row.name)
        row_dtype = jnp.float32 if dtype is not None and row.always_float32 else dtype
        if flaw := _flaw(weight, row_dtype):
            flawed.append(f"{weights.files[row.name]}: {weights.stored[row.name]} {flaw}")
        if flawed:
            continue
        arrays = row.layout.load(weight)
        for path, array in zip(row.paths, arrays, strict=True):
            if place is None:
                value = jnp.asarray(array, row_dtype)
            else:
                value = place("/".join(map(str, path)), np.asarray(array, row_dtype))
            set_param(params, path, value)
    if flawed:
        more = f", and {len(flawed) - 1} more weights are like it" if len(flawed) > 1 else ""
        raise UserError(f"{flawed[0]}{more}; download or train the model again")
    return config, params


def _flaw(weight: np.ndarray, dtype) -> str:
    """Says which numbers cannot be used in that dtype, the weight's own if None; "" for none."""
    if flaw := not_finite(weight):
        return f"has {flaw}"
    if dtype is None or jnp.finfo(dtype).max >= jnp.finfo(weight.dtype).max:
        return ""
    with np.errstate(over="ignore"):
        flaw = not_finite(weight.astype(dtype))
    return f"has numbers that {jnp.dtype(dtype).name} cannot hold" if flaw else ""


def _check(folder: Path, config: ModelConfig, weights: Weights) -> None:
    known = len(weights.shapes) + sum(map(len, weights.missing_files.values()))
    if config.layers > known:  # tables of missing layers would take minutes
        raise UserError(
            f"{folder} does not fit its config.json: there are {config.layers} layers and {known} "
            "weights; download it again"
        )
    expected = weight_shapes(config)
    in_missing_files = {name for names in weights.missing_files.values() for name in names}
    found = {name: shape for name, shape in weights.shapes.items() if name in expected}
    if _OUTPUT in weights.shapes and config.tied_embeddings and _INPUT in found:
        if not np.array_equal(weights.read(_OUTPUT), weights.read(_INPUT)):
            raise UserError(
                f"{weights.files[_OUTPUT]} holds {_OUTPUT} with other numbers than the embeddings, "
                "and config.json ties the two; set tie_word_embeddings to false, or remove the "
                "weight"
            )
    problems = {
        "missing files": [
            f"{file} ({len(names)} weights)" for file, names in weights.missing_files.items()
        ],
        "missing weights": sorted(expected.keys() - found.keys() - in_missing_files),
        "unused weights": [
            weights.stored[name]
            for name in weights.shapes
            if name not in expected and not (name == _OUTPUT and config.tied_embeddings)
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
    if any(problems.values()):
        raise UserError(
            f"{folder} does not fit its config.json: {_named(problems, len(str(folder)))}; "
            "download it again"
        )


def _named(problems: dict[str, list[str]], used: int) -> str:
    """Names the first problem of each kind, and says how many there are.

    It names as many kinds as fit into a sentence.
    """
    listed = [
        f"{kind}: {shown(names[0], _LONGEST // 3)}"
        + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for kind, names in problems.items()
        if names
    ]
    room = max(_LONGEST - used, _LONGEST // 2)
    count = 1
    while count < len(listed) and len("; ".join(listed[: count + 1])) < room:
        count += 1
    return "; ".join(listed[:count]) + ("; and more" if count < len(listed) else "")
