"""Measures the errors of keys, values, scores and attention outputs, per layer and KV head."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from hydrahead_jax.cache import LayerFormats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.kv_quality.inputs import attention_inputs, kv_heads
from hydrahead_jax.kv_quality.tuned import sides
from hydrahead_jax.kv_quality.vector_sums import (
    attention_sums,
    channel_squares,
    encoding_errors,
    restored,
    vector_sums,
)
from hydrahead_jax.mixers import AttentionInputs
from hydrahead_jax.resumable import cached
from pallas_kernels import KVFormat
from pallas_kernels.kv_cache.formats import KV_FORMATS

RAW_FORMAT = KV_FORMATS["bf16"]


def measure_vectors(
    config: ModelConfig,
    params: dict,
    tokens_XT: np.ndarray,
    formats: Mapping[str, LayerFormats],
    c_grid: tuple[float, ...],
    *,
    batch: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[dict]:
    """Returns the sums over all stretches of text, one dict a layer that has a KV cache.

    Each batch's sums are saved as they are made.

    Args:
      config: of the model.
      params: of the model.
      tokens_XT: stretches of text.
      formats: the format of each layer, by name.
      c_grid: values of UltraQuant's c to try for keys and values; none if empty.
      batch: stretches a pass.
      folder: of the batches' files.
      progress: called with the passes done and in all.
    """
    batches = np.array_split(tokens_XT, -(-len(tokens_XT) // batch))
    total = None
    for number, tokens_BT in enumerate(batches):
        what = {"batch": number, "batches": len(batches), "c_grid": c_grid}
        what["formats"] = {name: repr(one) for name, one in formats.items()}
        found = cached(
            folder / f"batch_{number}.json",
            what,
            lambda tokens_BT=tokens_BT: {
                "layers": _batch_sums(config, params, tokens_BT, formats, c_grid)
            },
        )["layers"]
        total = found if total is None else _added(total, found)
        progress(number + 1, len(batches))
    return total


def _batch_sums(config: ModelConfig, params: dict, tokens_BT, formats, c_grid) -> list[dict]:
    inputs = attention_inputs(config, params, tokens_BT)
    return [
        {
            "layer": layer,
            "heads": [
                _head_sums(read, place, {n: one[layer] for n, one in formats.items()}, c_grid)
                for place in range(len(kv_heads(config, layer)))
            ],
        }
        for layer, read in inputs.items()
    ]


def _head_sums(
    read: AttentionInputs, place: int, formats: Mapping[str, KVFormat | None], c_grid
) -> dict:
    """Returns the sums of one KV head of a layer, as JSON."""
    kv = {"keys": read.k_BTKH[:, :, place], "values": read.v_BTKH[:, :, place]}
    queries = [n for n, head in enumerate(read.kv_head_of_query) if head == place]
    B, T, _, _ = read.q_BTNH.shape
    sums = {"vectors": B * T, "pairs": len(queries) * B * T * (T + 1) // 2}
    sums["channels"] = {side: channel_squares(x_BTH) for side, x_BTH in kv.items()}
    if c_grid:
        sums["c_grid"] = {
            side: encoding_errors(sides(side, c_grid), x_BTH) for side, x_BTH in kv.items()
        }
    for name, kv_format in formats.items():
        kv_format = kv_format or RAW_FORMAT
        others = {side: restored(getattr(kv_format, side), x_BTH) for side, x_BTH in kv.items()}
        of_queries = [
            attention_sums(
                read.q_BTNH[:, :, n],
                tuple(kv.values()),
                tuple(others.values()),
                null_keys=read.null_keys,
            )
            for n in queries
        ]
        sums[name] = {side: vector_sums(kv[side], others[side]) for side in kv}
        sums[name]["attention"] = jax.tree.map(lambda *x: sum(x), *of_queries)
    return jax.tree.map(lambda x: np.asarray(x, np.float64).tolist(), sums)


def _added(one, other):
    """Adds the numbers of two trees; a layer's number is not a sum."""
    if isinstance(one, dict):
        return {k: v if k == "layer" else _added(v, other[k]) for k, v in one.items()}
    if isinstance(one, list):
        return list(itertools.starmap(_added, zip(one, other, strict=True)))
    return one + other
