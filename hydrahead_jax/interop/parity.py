"""Whether an exported folder computes in PyTorch what its parameters compute here."""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.generate import generate
from hydrahead_jax.models import merge

_PADDING = 13


class Parity(NamedTuple):
    """Attributes:
    max_abs_logit_difference: over all real tokens of a batch, one row of it padded on the left.
    greedy_tokens_equal: cached generation of that batch gives the same tokens.
    new_tokens: how many were generated for each row.
    """

    max_abs_logit_difference: float
    greedy_tokens_equal: bool
    new_tokens: int


def torch_is_installed() -> bool:
    """Whether the check can run."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def check_parity(
    folder: str | Path,
    config: ModelConfig,
    params: dict,
    *,
    length: int = 80,
    new_tokens: int = 64,
    seed: int = 0,
) -> Parity:
    """Loads `folder` as a user of PyTorch would, on CPU, and compares on random tokens in float32.

    Args:
      folder: an export.
      config: what was exported.
      params: likewise, rounded to the dtype of the export.
      length: prompt tokens; above one chunk of the delta rule.
      new_tokens: to generate.
      seed: of the prompt.
    """
    tokens_BT = np.random.default_rng(seed).integers(config.vocab, size=(2, length), dtype=np.int32)
    real_BT = np.ones_like(tokens_BT)
    real_BT[1, : min(_PADDING, length - 1)] = 0
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    theirs_BTV, theirs_BT = _run_torch(folder, tokens_BT, real_BT, new_tokens)
    with jax.default_matmul_precision("highest"):
        ours_BTV = np.asarray(_logits(config, params, tokens_BT, real_BT))
        prompts = [row[real == 1].tolist() for row, real in zip(tokens_BT, real_BT, strict=True)]
        ours_BT = generate(
            config, params, prompts, max_new_tokens=new_tokens, beyond_trained_length=True
        )
    difference_BTV = np.abs(ours_BTV - theirs_BTV)[real_BT == 1]
    return Parity(float(difference_BTV.max()), ours_BT == theirs_BT.tolist(), new_tokens)


@functools.partial(jax.jit, static_argnames="config")
def _logits(config: ModelConfig, params: dict, tokens_BT, segment_ids_BT) -> jax.Array:
    model = merge(config, params)
    return model.logits(model(tokens_BT, segment_ids_BT=segment_ids_BT).hidden_BTD)


def _run_torch(folder, tokens_BT, real_BT, new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, T, V] and greedily generated tokens [B, new_tokens]."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    # No stop token: a sequence that stops early would compare fewer tokens.
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    inputs = {"input_ids": torch.tensor(tokens_BT), "attention_mask": torch.tensor(real_BT)}
    with torch.inference_mode():
        logits_BTV = model(**inputs).logits
        out_BT = model.generate(**inputs, max_new_tokens=new_tokens)
    return logits_BTV.numpy(), out_BT[:, tokens_BT.shape[1] :].numpy()
