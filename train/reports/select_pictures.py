"""Draws the pictures of a selection, as PNG files."""

from pathlib import Path
from typing import Any

import numpy as np

from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection import HeadScores
from hydrahead_jax.selection.plans.quality import Quality
from hydrahead_jax.selection.scores.scores import RETRIEVAL
from train.reports.curves import (
    save_knock_out_curves,
    save_length_curve,
    save_quality_curve,
    save_stability_curves,
)
from train.reports.heat_map import save_heat_map, save_plan_map

_EFFECT = "mean effect, square-root scale"


def draw_all(
    folder: Path,
    scores: HeadScores,
    plan: HeadPlan,
    quality: Quality,
    knock_out: dict[str, Any] | None,
    stability: dict[str, Any] | None,
) -> dict[str, Path]:
    """Draws every picture that the given results allow into `folder`.

    Returns:
      Name of the picture -> its file.
    """
    pictures = draw_maps(folder, scores, plan)
    add = lambda name: pictures.setdefault(name, folder / f"{name}.png")
    save_quality_curve(quality, add("quality"))
    if knock_out is not None:
        save_knock_out_curves(
            knock_out["counts"], knock_out["curves"], add("knock_out"), budget=plan.count
        )
    if stability is not None:
        save_stability_curves(stability, add("stability"))
        if len(stability["over_length"]) > 1:
            save_length_curve(stability, add("length"))
    return pictures


def draw_maps(folder: Path, scores: HeadScores, plan: HeadPlan) -> dict[str, Path]:
    """Draws the maps of all heads and returns their files, by name."""
    softmax_LN, pictures = scores.softmax_LN, {}

    def draw(name: str, values_LN: np.ndarray, title: str, **more) -> None:
        pictures[name] = folder / f"{name}.png"
        save_heat_map(values_LN, pictures[name], softmax_LN=softmax_LN, title=title, **more)

    draw("receiver", scores.receiver.clamped_PLN.mean(axis=0), "Receiver score", label=_EFFECT)
    if scores.sender is not None:
        draw("sender", scores.sender.clamped_PLN.mean(axis=0), "Sender score", label=_EFFECT)
    if scores.total_PLN is not None:
        total_LN = np.abs(scores.total_PLN).mean(axis=0)
        draw("total", total_LN, "Total effect", label="mean |effect|, square-root scale")
    draw("fused", scores.score_LN, "Fused score", plan=plan)
    if RETRIEVAL in scores.capability_names and len(scores.capability_names) > 1:
        draw("retrieval", scores.normalised_LN(RETRIEVAL), "Retrieval alone", plan=plan)
    pictures["chosen"] = folder / "chosen.png"
    save_plan_map(plan, pictures["chosen"], softmax_LN=softmax_LN, title=plan.strategy)
    return pictures
