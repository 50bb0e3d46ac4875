"""From prompts to continuations."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.generate.decode import decode
from hydrahead_jax.generate.prefill import prefill
from hydrahead_jax.generate.sampling import Sampling
from hydrahead_jax.mixers import HeadEdit

_ROUND = 32


def generate(
    config: ModelConfig,
    params: dict,
    prompts: Sequence[Sequence[int]] | np.ndarray,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token: int | None = None,
    prefill_chunk: int | None = None,
    beyond_trained_length: bool = False,
    edits: dict[int, HeadEdit] | None = None,
) -> list[list[int]]:
    """Continues every prompt by up to `max_new_tokens` tokens.

    Prompts of different lengths are padded on the left, to a multiple of 32, so that prompts of
    similar length share one compiled function. A row's padding changes none of its numbers.

    Args:
      config: of the model.
      params: of the model.
      prompts: token ids, at least one a prompt.
      max_new_tokens: tokens to draw.
      temperature: 0 is greedy.
      top_k: see `Sampling`.
      top_p: see `Sampling`.
      seed: of the draws.
      stop_token: ends a continuation, and is not part of it.
      prefill_chunk: prompt tokens a pass; bounds memory. All at once if None.
      beyond_trained_length: allow more tokens than `config.max_length`.
      edits: layer -> head outputs to replace at every token, values [1, 1, N, H]. One compiled
        function serves all edits of the same layers.

    Raises:
      UserError: an empty prompt, an unknown token id, more tokens than the model was trained for,
        or a number out of its range.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    if not rows:
        return []
    _check(config, rows, max_new_tokens, prefill_chunk, beyond_trained_length)
    tokens_BT, segment_ids_BT = _pad_left(rows, prefill_chunk or _ROUND)
    out_BT = _run(
        config,
        params,
        tokens_BT,
        segment_ids_BT,
        jax.random.key(seed),
        edits,
        steps=max_new_tokens,
        sampling=sampling,
        stop_token=stop_token,
        chunk=prefill_chunk,
    )
    return [_until(row, stop_token) for row in np.asarray(out_BT).tolist()]


@functools.partial(jax.jit, static_argnames=("config", "steps", "sampling", "stop_token", "chunk"))
def _run(
    config, params, tokens_BT, segment_ids_BT, key, edits, *, steps, sampling, stop_token, chunk
):
    capacity = tokens_BT.shape[1] + steps
    logits_BV, cache = prefill(
        config, params, tokens_BT, segment_ids_BT, capacity=capacity, chunk=chunk, edits=edits
    )
    return decode(
        config,
        params,
        logits_BV,
        cache,
        key,
        steps=steps,
        sampling=sampling,
        stop_token=stop_token,
        edits=edits,
    )


def _check(config, rows, max_new_tokens, prefill_chunk, beyond_trained_length) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; give 1 or more")
    if prefill_chunk is not None and prefill_chunk < 1:
        raise UserError(f"prefill_chunk is {prefill_chunk}; give 1 or more")
    for index, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise UserError(f"prompt {index} is empty; a prompt needs at least one token")
        if row.min() < 0 or row.max() >= config.vocab:
            raise UserError(
                f"prompt {index} has token ids from {row.min()} to {row.max()}, the model knows 0 "
                f"to {config.vocab - 1}; encode it with the model's own tokenizer"
            )
    longest = max(row.size for row in rows) + max_new_tokens
    if longest > config.max_length and not beyond_trained_length:
        raise UserError(
            f"prompt and continuation come to {longest} tokens and the model was trained for "
            f"{config.max_length}; shorten them, or allow it with beyond_trained_length=True"
        )


def _pad_left(rows: list[np.ndarray], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Token and segment ids [B, T], T the longest row rounded up to `multiple`."""
    length = -(-max(row.size for row in rows) // multiple) * multiple
    tokens_BT = np.zeros((len(rows), length), np.int32)
    segment_ids_BT = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        tokens_BT[index, length - row.size :] = row
        segment_ids_BT[index, length - row.size :] = 1
    return tokens_BT, segment_ids_BT


def _until(row: list[int], stop_token: int | None) -> list[int]:
    return row[: row.index(stop_token)] if stop_token in row else row
