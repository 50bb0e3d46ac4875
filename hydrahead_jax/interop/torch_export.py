"""Writes a hybrid as a Hugging Face folder that PyTorch loads, with its own modelling code."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jax.numpy as jnp

from hydrahead_jax.cache import layer_formats
from hydrahead_jax.cache.by_layer import is_file_name
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import from_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.card_header import card_header
from hydrahead_jax.interop.hf_config import HYBRID_TYPE, is_teacher
from hydrahead_jax.interop.hf_export import write_model
from hydrahead_jax.interop.model_card import model_card
from hydrahead_jax.interop.parity import Parity, check_parity, torch_is_installed
from hydrahead_jax.interop.tokenizer_files import (
    GENERATION,
    check_tokenizer_files,
    copy_tokenizer_files,
    is_tokenizer_file,
    write_generation_config,
)
from hydrahead_jax.interop.weights import SHARD_BYTES, WEIGHT_FILES, read_json
from hydrahead_jax.local_path import local_path

_CODE = (
    "attention_hydrahead.py",
    "cache_hydrahead.py",
    "configuration_hydrahead.py",
    "convolution_hydrahead.py",
    "delta_rule_hydrahead.py",
    "documents_hydrahead.py",
    "inputs_hydrahead.py",
    "kernels_hydrahead.py",
    "keywords_hydrahead.py",
    "kv_formats_hydrahead.py",
    "layers_hydrahead.py",
    "mixers_hydrahead.py",
    "modeling_hydrahead.py",
    "native_hybrid_hydrahead.py",
    "packed_hydrahead.py",
    "slots_hydrahead.py",
    "tokens_hydrahead.py",
    "window_hydrahead.py",
)
_KV_NAMES = str | tuple[str | None, ...] | None
_SHOWN = 100
_ADVICE = "use tested versions of torch and transformers, or export unchecked with --no-check"
_WRITTEN = ("config.json", "README.md", *_CODE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Says what an export wrote.

    Attributes:
      folder: where the export is.
      bytes: size of its weights.
      parity: agreement with PyTorch, or None where it was not measured.
      why_not: the reason, where it was not measured.
    """

    folder: Path
    bytes: int
    parity: Parity | None
    why_not: str = ""

    @property
    def max_abs_logit_difference(self) -> float | None:
        """Returns the difference of PyTorch and JAX in float32; None if it was not measured."""
        return self.parity and self.parity.max_abs_logit_difference

    def __str__(self) -> str:
        """Returns one sentence for the user."""
        where = f"{self.folder} ({self.bytes / 2**20:.1f} MiB of weights)"
        if self.parity is None:
            return f"exported to {where}; not compared with PyTorch, {self.why_not}"
        problem = self.parity.generation_problem
        warning = f"; warning: transformers does not accept all of the teacher's {GENERATION}: "
        return (
            f"exported to {where}; {_difference(self.parity)}"
            f"{warning + problem[:_SHOWN] if problem else ''}"
        )


def export_torch(
    folder: str | Path,
    config: ModelConfig,
    params: dict,
    tokenizer_folder: str | Path,
    *,
    card: dict | None = None,
    dtype=jnp.float32,
    shard_bytes: int = SHARD_BYTES,
    check: bool = True,
    teacher: str | Path | None = None,
    kv_cache: str | Sequence[str | None] | None = None,
) -> ExportReport:
    """Writes a folder for `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)`.

    The folder appears complete or not at all. Where torch and transformers are installed, the
    export is loaded and compared before it appears: logits in float32 may differ by
    `parity.bound_on_difference`, and greedy tokens only where they are tied within that.

    Args:
      folder: new, empty, or an earlier export, which is replaced.
      config: of the hybrid.
      params: of the hybrid.
      tokenizer_folder: whose tokenizer files are copied byte for byte.
      card: facts for the model card, such as {"Base model": "Qwen/Qwen3-1.7B"}.
      dtype: dtype of the weights; gamma, A_log and dt_bias stay float32.
      shard_bytes: most bytes of a weight file.
      check: whether to compare.
      teacher: folder of the teacher, there or not, from which the card has license and base model.
      kv_cache: format in which PyTorch stores keys and values unless it is told another, or a list
        with one for each layer; see `layer_formats`. The comparison runs without a format.

    Raises:
      UserError: the model has no hybrid layer or cannot have that KV cache, the target is in use,
        there is no tokenizer, a number is not finite in that dtype, or PyTorch computes something
        else; an earlier export is then still there.
    """
    folder, tokenizer_folder = local_path(folder).absolute(), local_path(tokenizer_folder)
    _check(folder, config, tokenizer_folder)
    if is_file_name(kv_cache):
        raise UserError(
            f"{kv_cache} holds a format for each layer, which an exported folder does not take; "
            "name one of the formats"
        )
    layer_formats(config, kv_cache := from_plain(_KV_NAMES, kv_cache, "kv_cache"))
    folder = folder.resolve() if folder.is_symlink() else folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}; choose another folder"
        ) from error
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        write_model(new, config, params, dtype, shard_bytes=shard_bytes, kv_cache=kv_cache)
        for name in _CODE:
            code = resources.files("hydrahead_jax.interop.torch_model").joinpath(name)
            (new / name).write_bytes(code.read_bytes())
        copy_tokenizer_files(tokenizer_folder, new)
        write_generation_config(new)
        parity, why_not = None, ""
        if not check:
            why_not = "as asked"
        elif not torch_is_installed():
            why_not = "because torch and transformers are not installed"
        else:
            parity = _compare(new, folder, config, params, dtype)
        header = card_header(teacher and Path(teacher))
        text = model_card(config, card or {}, parity, header, kv_cache)
        (new / "README.md").write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in new.glob("*.safetensors"))
        if folder.exists():
            os.replace(folder, Path(scratch) / "replaced")
        os.replace(new, folder)
    return ExportReport(folder=folder, bytes=size, parity=parity, why_not=why_not)


def _compare(new: Path, folder: Path, config: ModelConfig, params: dict, dtype) -> Parity:
    """Raises UserError where the export is not what was exported."""
    try:
        parity = check_parity(new, config, params, dtype=dtype)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:_SHOWN]
        raise UserError(
            f"{folder} was not written, because PyTorch cannot run the model ({reason}); {_ADVICE}"
        ) from error
    if not parity.ok:
        raise UserError(
            f"{folder} was not written: {_difference(parity)}, where at most {parity.bound:.1e} "
            f"and nearly tied tokens are allowed; {_ADVICE}"
        )
    return parity


def _difference(parity: Parity) -> str:
    tokens = "the same" if parity.greedy_tokens_equal else "NOT the same"
    ties = ""
    if parity.greedy_tokens_equal and parity.near_ties:
        ties = f" but for {parity.near_ties} that were nearly tied"
    return (
        f"PyTorch's logits differ by at most {parity.max_abs_logit_difference:.1e}, and greedy "
        f"generation gives {tokens} {parity.new_tokens} tokens{ties}"
    )


def _check(folder: Path, config: ModelConfig, tokenizer_folder: Path) -> None:
    if is_teacher(config):
        raise UserError("this model has no hybrid layer; save it as a Qwen3 folder instead")
    if folder.exists() and not _may_be_replaced(folder):
        raise UserError(
            f"{folder} is not empty and holds more than an earlier export; choose another folder"
        )
    check_tokenizer_files(tokenizer_folder, config.vocab)


def _may_be_replaced(folder: Path) -> bool:
    """Says whether it is empty, or holds an export and nothing else."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    known = {*_WRITTEN, *(path.name for path in folder.glob(WEIGHT_FILES))}
    foreign = [name for name in names - known if not is_tokenizer_file(name)]
    if foreign or "config.json" not in names:
        return False
    return read_json(folder / "config.json").get("model_type") == HYBRID_TYPE
