"""Turns prompts into continuations."""

import functools
import numbers
from collections.abc import Collection, Sequence

import jax
import numpy as np

from hydrahead_jax.cache import KVFormats, layer_formats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.generate.decode import decode, until_stop
from hydrahead_jax.generate.prefill import prefill
from hydrahead_jax.generate.sampling import Sampling
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.token_ids import check_token_ids

_ROUND = 32
_SLOTS = 16  # kernels over an encoded cache take a multiple


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
    stop_token: int | Collection[int] | np.ndarray | None = None,
    prefill_chunk: int | None = None,
    beyond_trained_length: bool = False,
    edits: dict[int, HeadEdit] | None = None,
    kv_cache: KVFormats = None,
) -> list[list[int]]:
    """Continues every prompt by up to `max_new_tokens` tokens.

    Prompts of different lengths are padded on the left, to a multiple of 32, so that prompts of
    similar length share one compiled function. A row's padding changes none of its numbers, unless
    with `kv_cache` and `prefill_chunk` it moves the first token of a chunk.

    Args:
      config: of the model.
      params: of the model.
      prompts: token ids, at least one a prompt.
      max_new_tokens: tokens to draw.
      temperature: 0 is greedy.
      top_k: see `Sampling`.
      top_p: see `Sampling`.
      seed: seed of the draws, from 0 to 2**32 - 1.
      stop_token: a token, or several, any of which ends a continuation and is not part of it.
      prefill_chunk: prompt tokens a pass; bounds memory. All at once if None.
      beyond_trained_length: allow more tokens than `config.max_length`.
      edits: layer -> head outputs to replace at every token, values [1, 1, N, H]. One compiled
        function serves all edits of the same layers.
      kv_cache: format of the KV cache, such as "ultraquant", or one a layer; see `layer_formats`.

    Raises:
      UserError: an empty prompt, an unknown token id, more tokens than the model was trained for,
        a number that is out of its range or no integer, or a KV cache that the model cannot have.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    stops = _stops(config, stop_token)
    _check_whole("max_new_tokens", max_new_tokens, least=1)
    _check_whole("seed", seed, least=0, most=2**32 - 1)
    if prefill_chunk is not None:
        _check_whole("prefill_chunk", prefill_chunk, least=1)
    kv_formats = layer_formats(config, kv_cache)
    rows = [_row(config, index, prompt) for index, prompt in enumerate(prompts)]
    if not rows:
        return []
    if not beyond_trained_length:
        _check_length(config, max(row.size for row in rows) + max_new_tokens)
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
        stop_tokens=stops,
        chunk=prefill_chunk,
        kv_formats=kv_formats,
    )
    return [until_stop(row, stops) for row in np.asarray(out_BT).tolist()]


@functools.partial(
    jax.jit, static_argnames=("config", "steps", "sampling", "stop_tokens", "chunk", "kv_formats")
)
def _run(
    config,
    params,
    tokens_BT,
    segment_ids_BT,
    key,
    edits,
    *,
    steps,
    sampling,
    stop_tokens,
    chunk,
    kv_formats,
):
    capacity = tokens_BT.shape[1] + steps
    if any(kv_formats):
        capacity = -(-capacity // _SLOTS) * _SLOTS
    logits_BV, cache = prefill(
        config,
        params,
        tokens_BT,
        segment_ids_BT,
        capacity=capacity,
        chunk=chunk,
        edits=edits,
        kv_format=kv_formats,
    )
    return decode(
        config,
        params,
        logits_BV,
        cache,
        key,
        steps=steps,
        sampling=sampling,
        stop_tokens=stop_tokens,
        edits=edits,
    )


def _row(config: ModelConfig, index: int, prompt) -> np.ndarray:
    """Returns a prompt's tokens, int32."""
    row = _array(prompt)
    if row.ndim != 1:
        raise UserError(f"prompt {index} is not a list of token ids; give a list for each prompt")
    if not row.size:
        raise UserError(f"prompt {index} is empty; a prompt needs at least one token")
    check_token_ids(row, config.vocab, f"prompt {index}")
    return row.astype(np.int32)


def _array(value) -> np.ndarray:
    """Makes an array; lists of unequal length become one object."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.array(None)


def _stops(config: ModelConfig, stop_token) -> tuple[int, ...]:
    """Returns the stop tokens in ascending order, so that another order compiles nothing anew."""
    if stop_token is None:
        return ()
    is_array = hasattr(stop_token, "ndim")
    several = isinstance(stop_token, Collection) and not is_array
    stops = np.atleast_1d(_array(list(stop_token) if several else stop_token))
    if stops.ndim != 1:
        raise UserError("stop_token must be a token id or a list of token ids")
    check_token_ids(stops, config.vocab, "stop_token")
    return tuple(sorted(set(stops.tolist())))


def _check_whole(name: str, value, *, least: int, most: int | None = None) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        wanted = f"{least} or more" if most is None else f"a whole number from {least} to {most}"
        raise UserError(f"{name} is {value!r}; give {wanted}")


def _check_length(config: ModelConfig, longest: int) -> None:
    if longest > config.max_length:
        raise UserError(
            f"prompt and continuation come to {longest} tokens and the model was trained for "
            f"{config.max_length}; shorten them, or allow it with beyond_trained_length=True"
        )


def _pad_left(rows: list[np.ndarray], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns token and segment ids [B, T], T the longest row rounded up to `multiple`."""
    length = -(-max(row.size for row in rows) // multiple) * multiple
    tokens_BT = np.zeros((len(rows), length), np.int32)
    segment_ids_BT = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        tokens_BT[index, length - row.size :] = row
        segment_ids_BT[index, length - row.size :] = 1
    return tokens_BT, segment_ids_BT
