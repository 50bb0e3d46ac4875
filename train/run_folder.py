"""The folder of a run: what it was asked for, and what came of it."""

import json
import shutil
from pathlib import Path

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from train.config_file import convert, differences, to_plain

CONFIG = "config.json"
MODEL = "model.json"
PLAN = "head_plan.json"
PROBES = "probes.jsonl"
TOKENIZER = "tokenizer"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
FINISHED = "finished.json"
_SHOWN = 3


def open_run(folder: Path, record: dict) -> bool:
    """Makes the folder, or checks that it holds the same run.

    Args:
      folder: of the run.
      record: all that determines the run, as JSON.

    Returns:
      Whether the run was there already.

    Raises:
      UserError: the folder holds another run, or something else.
    """
    path = folder / CONFIG
    record = json.loads(json.dumps(record))
    if path.is_file():
        found = differences(read_json(path), record)
        if found:
            more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise UserError(
                f"{folder} holds a different run: {', '.join(found[:_SHOWN])}{more}; "
                f"choose another folder with run=..., or delete this one"
            )
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and holds no run; choose another folder with run=...")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return False


def write_json(path: Path, value) -> None:
    """All of the file or nothing, even if the process is killed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def read_json(path: Path):
    """What `write_json` wrote.

    Raises:
      UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def save_model(folder: Path, config: ModelConfig) -> None:
    """Writes the model's config."""
    write_json(folder / MODEL, to_plain(config))


def load_model(folder: Path) -> ModelConfig:
    """Raises UserError where the folder holds no run."""
    path = folder / MODEL
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no {MODEL}")
    return convert(ModelConfig, read_json(path), str(path))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the tokenizer's files, so that the run can be read without the teacher.

    Raises:
      UserError: `source` has no tokenizer.json.
    """
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json")
    target = folder / TOKENIZER
    target.mkdir(parents=True, exist_ok=True)
    names = ("special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json")
    for path in (*source.glob("tokenizer*"), *(source / name for name in names)):
        if path.is_file():
            shutil.copy(path, target / path.name)
