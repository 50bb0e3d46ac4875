"""Writes a teacher as a Hugging Face folder that transformers' Qwen3ForCausalLM loads."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.hf_config import is_teacher, to_hf_config
from hydrahead_jax.interop.key_table import Row, get_param, key_table, weight_shapes
from hydrahead_jax.interop.not_finite import not_finite
from hydrahead_jax.interop.weight_writer import Tensor, write_weights
from hydrahead_jax.interop.weights import SHARD_BYTES, WEIGHT_FILES
from hydrahead_jax.json_file import write_json
from hydrahead_jax.local_path import local_path


def save_hf_teacher(
    folder: str | Path,
    config: ModelConfig,
    params: dict,
    dtype=jnp.bfloat16,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and the weights beside whatever else the folder holds.

    Weights of an earlier call are replaced, and only once the new ones are complete.

    Raises:
      UserError: some layer is not full attention, or a number is not finite in that dtype.
    """
    if not is_teacher(config):
        raise UserError(
            "the model has layers without full attention and cannot be saved as a Qwen3 folder; "
            "use `python -m train export`"
        )
    folder = local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as new:
        write_model(Path(new), config, params, dtype, shard_bytes=shard_bytes)
        for old in folder.glob(WEIGHT_FILES):
            old.unlink()
        for path in Path(new).iterdir():
            os.replace(path, folder / path.name)


def write_model(
    folder: Path,
    config: ModelConfig,
    params: dict,
    dtype,
    *,
    shard_bytes: int = SHARD_BYTES,
    kv_cache: str | tuple[str | None, ...] | None = None,
) -> None:
    """Writes config.json and the weights of any model into an empty folder."""
    fields = to_hf_config(config, jnp.dtype(dtype).name)
    if kv_cache is not None:
        fields["kv_cache"] = kv_cache
    write_json(folder / "config.json", fields)
    write_weights(folder, _tensors(config, params, jnp.dtype(dtype)), shard_bytes)


def _tensors(config: ModelConfig, params: dict, dtype: np.dtype) -> Iterator[Tensor]:
    shapes = weight_shapes(config)
    for row in key_table(config):
        row_dtype = np.dtype(np.float32) if row.always_float32 else dtype
        make = _maker(row, params, row_dtype)
        yield Tensor(name=row.name, shape=shapes[row.name], dtype=row_dtype, make=make)


def _maker(row: Row, params: dict, dtype: np.dtype):
    def make() -> np.ndarray:
        with np.errstate(over="ignore"):  # `not_finite` below reports it
            arrays = [
                np.asarray(get_param(params, path)).astype(dtype, copy=False) for path in row.paths
            ]
        weight = row.layout.save(*arrays)
        if flaw := not_finite(weight):
            raise UserError(
                f"{row.name} in {dtype.name} has {flaw}, so the model was not written; use "
                "another dtype or train the model again"
            )
        return weight

    return make
