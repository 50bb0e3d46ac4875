"""Measures all formats of one model's KV cache; continues where it was interrupted."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.cache import LayerFormats, layer_formats
from hydrahead_jax.cache.by_layer import SIDES, ultraquant
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import Haystack
from hydrahead_jax.evals.text_loss import check_text, spread_windows
from hydrahead_jax.kv_quality.errors import layer_errors, mean_errors, outlier
from hydrahead_jax.kv_quality.inputs import kv_heads, kv_layers
from hydrahead_jax.kv_quality.settings import BY_LAYER, TUNED_FROM, KVReportSettings
from hydrahead_jax.kv_quality.through_cache import measure_through_cache, needle_documents
from hydrahead_jax.kv_quality.tuned import best_c, gain, tune
from hydrahead_jax.kv_quality.vectors import RAW_FORMAT, measure_vectors
from hydrahead_jax.token_ids import check_tokenizer

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Holds the text that formats are measured on.

    Attributes:
      calibration: tokens whose keys and values are compared, and c is tuned on.
      scored: other text, for the loss and the KL divergence, and around needles.
    """

    calibration: np.ndarray
    scored: Haystack


def check(
    config: ModelConfig, tokenizer: Tokenizer, texts: Texts, settings: KVReportSettings, stops
) -> tuple[dict[str, LayerFormats], dict]:
    """Returns the formats of all layers by name, and the needle documents by kind and length.

    Raises:
      UserError: the model cannot have such a cache, or text or documents do not suit it.
    """
    check_tokenizer(tokenizer, config.vocab)
    if not kv_layers(config):
        raise UserError("the model has no softmax heads and no KV cache; give another model")
    formats = {name: layer_formats(config, name) for name in settings.formats}
    length = settings.length or config.max_length
    for tokens in (texts.calibration, texts.scored.tokens):
        check_text(tokens, length, config.vocab)
    return formats, needle_documents(config, tokenizer, texts.scored, settings, stops)


def measure(
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    texts: Texts,
    settings: KVReportSettings,
    *,
    folder: Path,
    stops: Collection[int] = (),
    progress: Progress = lambda part, done, total: None,
) -> dict:
    """Returns the report, as JSON.

    Args:
      config: of the model.
      params: of the model.
      tokenizer: of the model.
      texts: what to measure on.
      settings: what to measure.
      folder: what is done is saved there; it must hold nothing of another model or other text.
      stops: tokens that end a reply, see `needle_questions`.
      progress: called with a part's name, what is done of it and what there is.

    Raises:
      UserError: as `check`.
    """
    formats, asked = check(config, tokenizer, texts, settings, stops)
    length = settings.length or config.max_length
    calibration_XT = spread_windows(texts.calibration, settings.calibration, length)
    scored_XT = spread_windows(texts.scored.tokens, settings.windows, length)
    vectors = lambda part, which, c_grid: measure_vectors(
        config,
        params,
        calibration_XT,
        which,
        c_grid,
        batch=settings.batch,
        folder=folder / part,
        progress=lambda done, total: progress(f"keys and values, {part}", done, total),
    )
    is_tuned = TUNED_FROM in formats
    layers, tuned = vectors("formats", formats, settings.c_grid if is_tuned else ()), []
    if is_tuned:
        tuned = tune(layers, settings.c_grid)
        of_layers = {layer: ultraquant(c) for layer, c in best_c(tuned).items()}
        formats[BY_LAYER] = layer_formats(config, of_layers)
        again = vectors("by_layer", {BY_LAYER: formats[BY_LAYER]}, ())
        layers = [_with(one, other) for one, other in zip(layers, again, strict=True)]
    report = {
        "length": length,
        "trained_length": config.max_length,
        "formats": {name: _cost(config, one) for name, one in formats.items()},
        "layers": [_layer(config, layer, formats, settings.outlier) for layer in layers],
        "tuned": tuned,
        "gain": {str(c): gain(tuned, c) for c in (0.156, 0.2)} if tuned else {},
    }
    for name in formats:
        report["formats"][name] |= mean_errors(layers, name)
    for name, found in measure_through_cache(
        config, params, scored_XT, asked, formats, settings, folder=folder, progress=progress
    ).items():
        report["formats"][name] |= found
    return report


def _cost(config: ModelConfig, formats: LayerFormats) -> dict[str, int | float]:
    """Returns the bytes that a token's keys and values take in all layers; raw ones in bf16."""
    heads = {layer: len(kv_heads(config, layer)) for layer in kv_layers(config)}
    each = lambda layer: (formats[layer] or RAW_FORMAT).bytes_a_token(config.head_dim, jnp.bfloat16)
    total = sum(heads[layer] * each(layer) for layer in heads)
    return {"bytes_a_token": total, "bits": 4 * total / (config.head_dim * sum(heads.values()))}


def _layer(config: ModelConfig, layer: dict, formats, threshold: float) -> dict:
    """Returns the errors of a layer's KV heads, and which of them have outlier channels."""
    channels = {side: [outlier(head, side) for head in layer["heads"]] for side in SIDES}
    heads = kv_heads(config, layer["layer"])
    marked = {
        side: [
            head for head, of in zip(heads, found, strict=True) if of["times_median"] > threshold
        ]
        for side, found in channels.items()
    }
    return {
        "layer": layer["layer"],
        "kv_heads": list(heads),
        "formats": layer_errors(layer, tuple(formats)),
        "channels": channels,
        "outlier_heads": marked,
    }


def _with(one: dict, other: dict) -> dict:
    """Returns a layer's sums with those of another format beside them."""
    pairs = zip(one["heads"], other["heads"], strict=True)
    return {"layer": one["layer"], "heads": [a | b for a, b in pairs]}
