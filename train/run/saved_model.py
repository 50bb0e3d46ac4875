"""Loads models to evaluate, score or export: a finished run, or a Hugging Face folder."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import load_hf
from hydrahead_jax.json_file import read_json
from hydrahead_jax.local_path import local_path
from hydrahead_jax.models import abstract_params
from train.files.param_paths import flatten, unflatten
from train.files.run_folder import CHECKPOINTS, FINISHED, MODEL, TOKENIZER, load_model
from train.run.checkpoint import CheckpointStore


class SavedModel(NamedTuple):
    """Holds a loaded model.

    Attributes:
      config: config of the model.
      params: parameters of the model.
      tokenizer: folder with the tokenizer's files.
    """

    config: ModelConfig
    params: dict
    tokenizer: Path


def load_saved(folder: Path, dtype: str = "float32") -> SavedModel:
    """Loads the model in `folder`, its parameters in `dtype`.

    Raises:
      UserError: it holds no model, or a run that is not finished or was damaged.
    """
    folder = local_path(folder)
    if (folder / MODEL).is_file():
        config, params = load_run(folder)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return SavedModel(config, params, folder / TOKENIZER)
    return SavedModel(*load_hf(folder, jnp.dtype(dtype)), folder)


def load_run(folder: Path) -> tuple[ModelConfig, dict]:
    """Loads config and final parameters of a run; raises as `load_saved`."""
    folder = local_path(folder)
    config = load_model(folder)
    if not (folder / FINISHED).is_file():
        raise UserError(f"{folder} is not finished; continue it by the command that began it")
    steps = read_json(folder / FINISHED)["steps"]
    store = CheckpointStore(folder / CHECKPOINTS)
    try:
        if flaw := store.flaw(steps):
            raise UserError(
                f"the last checkpoint in {folder} {flaw}; run the command of this run "
                "again to restore it"
            )
        params = store.restore_params(steps, flatten(abstract_params(config)))
    finally:
        store.close()
    for name, leaf in params.items():
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise UserError(
                f"the last checkpoint in {folder} holds numbers in {name} that are not finite; "
                "train again from an earlier one"
            )
    return config, unflatten(params)
