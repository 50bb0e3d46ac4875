"""Reads and writes the folder of a run: its settings and its results."""

import secrets
from pathlib import Path

from hydrahead_jax import json_file
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import read_as, to_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.tokenizer_files import copy_tokenizer_files
from hydrahead_jax.resumable import open_folder
from train import distributed

CONFIG = "config.json"
MODEL = "model.json"
PLAN = "head_plan.json"
PROBES = "probes.jsonl"
TOKENIZER = "tokenizer"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
FINISHED = "finished.json"
_PROBE = ".shared"


def open_run(folder: Path, record: dict) -> bool:
    """Makes the folder, or checks that it holds the same run.

    Args:
      folder: folder of the run.
      record: all that determines the run, as JSON.

    Returns:
      Whether the run existed already.

    Raises:
      UserError: the folder holds another run, or something else, cannot be written, or is not the
        same for all processes.
    """
    record = json_file.plain(record)
    was_there = distributed.agree("run folder", lambda: _open_run(folder, record))
    _check_shared(folder)
    return was_there


def _open_run(folder: Path, record: dict) -> bool:
    advice = "choose another folder with run=..."
    was_there = open_folder(folder, CONFIG, record, holds="run", advice=advice)
    try:
        (folder / _PROBE).write_text(secrets.token_hex())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; {advice}") from error
    return was_there


def _check_shared(folder: Path) -> None:
    """Raises UserError where this process does not see what the first one wrote."""
    probe = folder / _PROBE
    expected = distributed.agree("probe", probe.read_text)
    if not probe.is_file() or probe.read_text() != expected:
        raise UserError(
            f"process {distributed.index()} does not see the {folder} that process 0 writes; put "
            f"run=... on a file system that all processes share"
        )


def write_json(path: Path, value) -> None:
    """Writes all of the file or nothing, even if the process is killed; only on process 0."""
    if distributed.is_first():
        json_file.write_json(path, value)


def save_model(folder: Path, config: ModelConfig) -> None:
    """Writes the model's config."""
    write_json(folder / MODEL, to_plain(config))


def load_model(folder: Path) -> ModelConfig:
    """Reads the model's config; raises UserError where the folder holds no run."""
    path = folder / MODEL
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run folder: it has no {MODEL}; give the folder of a run"
        )
    return read_as(ModelConfig, path)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the tokenizer's files, so that the run can be read without the teacher.

    Raises:
      UserError: `source` has no tokenizer.json.
    """
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json; copy the tokenizer there")
    if distributed.is_first():
        copy_tokenizer_files(source, folder / TOKENIZER)
