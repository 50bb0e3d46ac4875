"""Checks whether an exported folder computes in PyTorch what its parameters compute here."""

import functools
import gc
import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.interop.layerwise import rounded_logits

ABSOLUTE_BOUND = 1e-4
RELATIVE_BOUND = 1e-5
LARGEST_RELATIVE_BOUND = 1e-3
TIMES_MOVED = 8
_PADDING = 13
_WORDS = 8192


class Parity(NamedTuple):
    """Says how far PyTorch and JAX agree on an export.

    Attributes:
      max_abs_logit_difference: over all real tokens of a batch, one row of it padded on the left,
        and over the tokens that PyTorch generated after them with its cache.
      greedy_tokens_equal: what PyTorch generated is, at every step, our likeliest token too, or
        nearly tied with it.
      new_tokens: how many were generated for each row.
      bound: upper bound of the difference; see `bound_on_difference`.
      near_ties: generated tokens whose logit is not our largest, but within twice the bound of it.
      generation_problem: why transformers refuses generation_config.json; "" if it does not.
    """

    max_abs_logit_difference: float
    greedy_tokens_equal: bool
    new_tokens: int
    bound: float = ABSOLUTE_BOUND
    near_ties: int = 0
    generation_problem: str = ""

    @property
    def ok(self) -> bool:
        """Says whether the two compute the same; numbers that are not finite do not."""
        return self.max_abs_logit_difference <= self.bound and self.greedy_tokens_equal


def torch_is_installed() -> bool:
    """Says whether the check can run."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def bound_on_difference(logits_XV: np.ndarray, moved: float = 0.0) -> float:
    """Returns how far two float32 computations of the same logits may be apart.

    Rounding errors grow with the numbers that are rounded and with what the model makes of them.
    The bound is 1e-5 of the logits' range, the largest one less the smallest at the same token, and
    1e-4 where the range is below 10. Where it is more, the bound is 8 times the change of the
    logits when each weight moves by its last digit, but at most 1e-3 of the range.

    Args:
      logits_XV: our logits.
      moved: the largest difference that moving the weights by their last digits made to them.
    """
    spread = max(float(np.ptp(logits_XV, axis=-1).max()), ABSOLUTE_BOUND / RELATIVE_BOUND)
    measured = min(TIMES_MOVED * moved, LARGEST_RELATIVE_BOUND * spread)
    return max(RELATIVE_BOUND * spread, measured)


def check_parity(
    folder: str | Path,
    config: ModelConfig,
    params: dict,
    *,
    dtype=jnp.float32,
    length: int = 80,
    new_tokens: int = 64,
    seed: int = 0,
) -> Parity:
    """Loads `folder` as a user of PyTorch would, on CPU, and compares on random tokens in float32.

    PyTorch generates from a prompt. What it generated is then read here in one pass without a
    cache, so that a token is compared even after tokens that were nearly tied. Both sides hold the
    weights in the dtype of the export and widen one layer at a time.

    Args:
      folder: an export.
      config: config that was exported.
      params: parameters that were exported.
      dtype: dtype of the export, to which the parameters are rounded.
      length: prompt tokens; above one chunk of the delta rule.
      new_tokens: how many to generate.
      seed: seed of the prompt.
    """
    tokens_BT = np.random.default_rng(seed).integers(config.vocab, size=(2, length), dtype=np.int32)
    real_BT = np.ones_like(tokens_BT)
    real_BT[1, : min(_PADDING, length - 1)] = 0
    theirs_BTV, new_BT = _run_torch(folder, tokens_BT, real_BT, new_tokens)
    gc.collect()  # PyTorch's modules form reference cycles
    tokens_BT = np.concatenate([tokens_BT, new_BT[:, :-1]], axis=1, dtype=np.int32)
    real_BT = np.pad(real_BT, ((0, 0), (0, new_tokens - 1)), constant_values=1)
    ours_BTV = rounded_logits(config, params, dtype, tokens_BT, real_BT)
    real_XV = ours_BTV[real_BT == 1]
    apart = lambda other_BTV: float(np.abs(ours_BTV - other_BTV)[real_BT == 1].max())
    difference = apart(theirs_BTV)
    new_BTV = ours_BTV[:, length - 1 :]
    taken_BT = np.take_along_axis(new_BTV, new_BT[..., None], axis=-1)[..., 0]
    behind_BT = new_BTV.max(axis=-1) - taken_BT
    bound = bound_on_difference(real_XV)
    if not (difference <= bound and behind_BT.max() <= 2 * bound):
        nudge = np.random.default_rng(seed)
        nudged_BTV = rounded_logits(config, params, dtype, tokens_BT, real_BT, nudge=nudge)
        bound = bound_on_difference(real_XV, apart(nudged_BTV))
    return Parity(
        max_abs_logit_difference=difference,
        greedy_tokens_equal=bool((behind_BT <= 2 * bound).all()),
        new_tokens=new_tokens,
        bound=bound,
        near_ties=int((behind_BT > 0).sum()),
        generation_problem=_generation_problem(folder),
    )


def _generation_problem(folder) -> str:
    """Returns the errors of strict validation in the teacher's generation_config.json."""
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(folder).validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())
    return ""


def _run_torch(folder, tokens_BT, real_BT, new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns PyTorch's logits and its new tokens, drawn greedily.

    The logits are those of the prompt and of all new tokens but the last, [B, T, V].
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    model.config.kv_cache = None  # what is stored in few bits no pass without a cache can equal
    _widen_in_turn(model.eval())
    # No stop token: a sequence that stops early would compare fewer tokens.
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    inputs = {"input_ids": torch.tensor(tokens_BT), "attention_mask": torch.tensor(real_BT)}
    with torch.no_grad():
        logits_BTV = model(**inputs).logits
        out = model.generate(
            **inputs, max_new_tokens=new_tokens, output_logits=True, return_dict_in_generate=True
        )
    logits_BTV = torch.cat([logits_BTV[:, :-1], torch.stack(out.logits, dim=1)], dim=1)
    return logits_BTV.float().numpy(), out.sequences[:, tokens_BT.shape[1] :].numpy()


def _widen_in_turn(model) -> None:
    """Makes a model compute in float32 and hold at most one layer in it; exact."""
    import torch

    def widen(kept: dict, module, *_):
        for parameter in module.parameters():
            kept[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def restore(kept: dict, *_):
        for parameter, data in kept.items():
            parameter.data = data
        kept.clear()

    def logits(weight_VD, hidden_BTD):
        pieces = [hidden_BTD @ w_VD.float().T for w_VD in weight_VD.split(_WORDS)]
        return torch.cat(pieces, dim=-1)

    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, out: out.float())
    model.lm_head.forward = functools.partial(logits, model.lm_head.weight)
    for module in (*model.model.layers, model.model.norm):
        kept = {}
        module.register_forward_pre_hook(functools.partial(widen, kept))
        module.register_forward_hook(functools.partial(restore, kept))
