"""Turns sums over keys, values, scores and outputs into the errors of formats."""

import math
from collections.abc import Sequence

import numpy as np

from hydrahead_jax.cache.by_layer import SIDES

MEASURES = {
    "k_relative_mse": "relative squared error of the keys",
    "k_cosine": "mean cosine of the keys",
    "v_relative_mse": "relative squared error of the values",
    "v_cosine": "mean cosine of the values",
    "logit_error": "standard deviation of the scores' difference",
    "output_error": "relative squared error of the attention output",
}


def head_errors(sums: dict, name: str) -> dict[str, float]:
    """Returns the errors of a format at one KV head."""
    of, attention = sums[name], sums[name]["attention"]
    mean = attention["score"] / sums["pairs"]
    found = {
        f"{side[0]}_{measure}": value
        for side in SIDES
        for measure, value in (
            ("relative_mse", _ratio(of[side]["error"], of[side]["power"])),
            ("cosine", of[side]["cosine"] / sums["vectors"]),
        )
    }
    found["logit_error"] = math.sqrt(max(attention["score_square"] / sums["pairs"] - mean**2, 0.0))
    found["output_error"] = _ratio(attention["output_error"], attention["output_power"])
    return found


def layer_errors(layer: dict, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Returns for each format its errors, a list over the KV heads of a layer for each."""
    rows = {name: [head_errors(sums, name) for sums in layer["heads"]] for name in names}
    return {
        name: {m: [head[m] for head in heads] for m in MEASURES} for name, heads in rows.items()
    }


def mean_errors(layers: Sequence[dict], name: str) -> dict[str, float]:
    """Returns the errors of a format, averaged over all KV heads of all layers."""
    heads = [head_errors(sums, name) for layer in layers for sums in layer["heads"]]
    return {measure: float(np.mean([head[measure] for head in heads])) for measure in MEASURES}


def outlier(sums: dict, side: str) -> dict[str, float | int]:
    """Says which channel of a KV head stands out most, and how many times the median it is."""
    rms_H = np.sqrt(np.asarray(sums["channels"][side]) / sums["vectors"])
    channel = int(np.argmax(rms_H))
    return {
        "channel": channel,
        "times_median": _ratio(float(rms_H[channel]), float(np.median(rms_H))),
    }


def _ratio(part: float, total: float) -> float:
    """Returns the ratio; 0 if both are 0."""
    return part / total if total else (math.inf if part else 0.0)
