"""Exports a run as a folder that PyTorch loads."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import export_torch
from hydrahead_jax.interop.tokenizer_files import GENERATION, copy_tokenizer_files, tokenizer_files
from hydrahead_jax.interop.weights import SHARD_BYTES
from hydrahead_jax.json_file import read_json
from hydrahead_jax.local_path import local_path
from train.files.run_folder import CONFIG
from train.run.saved_model import load_saved

_DTYPES = ("float32", "bfloat16")
_UNITS = {
    f"{letter}{i}B": (1024 if i else 1000) ** power
    for power, letter in enumerate("KMGT", 1)
    for i in ("", "I")
} | {"B": 1}


def export_run(
    run: Path,
    out: Path,
    say: Callable[[str], None] = print,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    check: bool = True,
    kv_cache: str | None = None,
) -> float | None:
    """Writes the student of a finished run as a Hugging Face folder.

    Args:
      run: folder of the run, or of an earlier export.
      out: new folder, or an earlier export, which is replaced.
      say: takes a sentence for the user.
      dtype: dtype of the weights, "float32" or "bfloat16".
      shard_bytes: most bytes of a weight file.
      check: whether PyTorch's numbers are compared with ours, where PyTorch is installed.
      kv_cache: format in which PyTorch stores keys and values; unchanged if None.

    Returns:
      The largest difference between PyTorch's logits and ours, None where it was not measured.

    Raises:
      UserError: the run is not finished, `out` is in use, the model cannot have that KV cache, or
        PyTorch computes something else.
    """
    if dtype not in _DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be {' or '.join(_DTYPES)}")
    run, out = local_path(run), local_path(out)
    model, record = load_saved(run), _record(run)
    teacher = Path(record["config"]["teacher"]) if record else None
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = model.tokenizer
        if teacher and _completed(tokenizer, teacher, Path(scratch), say):
            tokenizer = Path(scratch)
        report = export_torch(
            out,
            model.config,
            model.params,
            tokenizer,
            card=_card(record) if record else None,
            dtype=dtype,
            shard_bytes=shard_bytes,
            check=check,
            teacher=teacher,
            kv_cache=kv_cache,
        )
    say(str(report))
    return report.max_abs_logit_difference


def parse_size(text: str) -> int:
    """Returns the bytes of a size such as "5GB", "500 MB" or "5GiB".

    Raises:
      UserError: the text is not a size, or the size is less than one byte.
    """
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT]?I?B)\s*", text.upper())
    size = int(float(found[1]) * _UNITS.get(found[2], 0)) if found else 0
    if size < 1:
        raise UserError(f"{text!r} is not a size; give a number and a unit, such as 5GB or 500MB")
    return size


def _completed(run: Path, teacher: Path, scratch: Path, say: Callable[[str], None]) -> bool:
    """Copies to `scratch` the tokenizer files of a run and those that only the teacher has.

    Runs of earlier versions saved neither chat templates nor generation_config.json.

    Returns:
      Whether `scratch` holds the files; the run's own folder is used where it does not.
    """
    ours, theirs = run / "tokenizer.json", teacher / "tokenizer.json"
    same = theirs.is_file() and ours.is_file() and theirs.read_bytes() == ours.read_bytes()
    kept = tokenizer_files(run)
    if not same:
        if Path(GENERATION) not in kept:
            say(
                f"warning: the run keeps no {GENERATION}, and {teacher} is not there any more or "
                "has another tokenizer; stop tokens are the tokenizer's, chat templates the run's"
            )
        return False
    if not set(tokenizer_files(teacher)) - set(kept):
        return False
    copy_tokenizer_files(teacher, scratch)
    copy_tokenizer_files(run, scratch)
    return True


def _record(run: Path) -> dict:
    """Returns the record of a transfer's settings; empty for a folder that is no transfer."""
    path = run / CONFIG
    record = read_json(path) if path.is_file() else {}
    return record if "teacher" in record.get("config", {}) else {}


def _card(record: dict) -> dict:
    plan, config = record.get("head_plan"), record["config"]
    heads = plan and {
        "Head plan": f"{plan['strategy']}, {sum(map(len, plan['fa_heads']))} softmax heads"
    }
    return {
        "Base model": Path(config["teacher"]).name,
        **(heads or {}),
        "Training": ", ".join(f"{s['name']} {s['steps']} steps" for s in config["stages"]),
    }
