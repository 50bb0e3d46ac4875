"""Finds the files of a model's folder that belong to its tokenizer and chat format."""

import fnmatch
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.weights import read_json
from hydrahead_jax.json_file import write_json
from hydrahead_jax.token_ids import check_tokenizer

GENERATION = "generation_config.json"
TEMPLATES = "additional_chat_templates"
_NEEDED = ("tokenizer.json", "tokenizer_config.json")
_FILES = (
    *_NEEDED,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "*.tiktoken",
    "tokenization_*.py",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION,
)


def is_tokenizer_file(name: str) -> bool:
    """Says whether a file, or folder of templates, of a model's folder belongs to its tokenizer."""
    return name == TEMPLATES or any(fnmatch.fnmatch(name, pattern) for pattern in _FILES)


def tokenizer_files(folder: Path) -> list[Path]:
    """Returns the tokenizer files of `folder`, relative to it, in order."""
    found = [path for path in folder.iterdir() if is_tokenizer_file(path.name) and path.is_file()]
    found += [path for path in (folder / TEMPLATES).glob("*") if path.is_file()]
    return sorted(path.relative_to(folder) for path in found)


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copies the tokenizer files byte for byte into `target`, which is made if it is missing."""
    for name in tokenizer_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def check_tokenizer_files(folder: Path, vocab: int) -> None:
    """Checks the tokenizer files that an export needs.

    Raises:
      UserError: a file is missing or cannot be read, or the tokenizer has ids that a model of
        `vocab` tokens does not know.
    """
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, which the export needs")
    path = folder / "tokenizer.json"
    added = read_json(path).get("added_tokens") or []
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more exact
        raise UserError(
            f"{path} is not a tokenizer: {str(error)[:100]}; copy or download it again"
        ) from error
    declared = {token["content"]: token["id"] for token in added}
    check_tokenizer(tokenizer, vocab, str(path), declared)
    read_json(folder / "tokenizer_config.json")
    if (folder / GENERATION).is_file():
        read_json(folder / GENERATION)


def write_generation_config(folder: Path) -> None:
    """Makes generation_config.json from the tokenizer where there is none."""
    if not (folder / GENERATION).exists():
        settings = {"do_sample": False} | _special_ids(folder)
        write_json(folder / GENERATION, settings)


def _special_ids(folder: Path) -> dict[str, int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = read_json(folder / "tokenizer_config.json")
    ids = {}
    for name in ("bos", "eos", "pad"):
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and (number := tokenizer.token_to_id(text)) is not None:
            ids[f"{name}_token_id"] = number
    return ids
