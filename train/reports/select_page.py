"""Writes a selection's report.html: what was chosen, why, and how far it can be trusted."""

from pathlib import Path
from typing import Any

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection import HeadScores, Selection, receivers_kept
from hydrahead_jax.selection.plans.quality import Quality, plan_quality
from train.files.versions import versions
from train.reports import html
from train.reports.select_pictures import draw_all
from train.reports.select_tables import (
    account_tables,
    head_table,
    knock_out_table,
    quality_table,
    stability_tables,
)

REPORT = "report.html"


def write_select_report(
    folder: Path,
    record: dict[str, Any],
    config: ModelConfig,
    selection: Selection,
    plan: HeadPlan,
    knock_out: dict[str, Any] | None,
    stability: dict[str, Any] | None,
    kv_dtype: str,
) -> Path:
    """Draws the pictures into `folder` and writes the page that holds them all.

    Args:
      folder: folder of the selection.
      record: config of the selection, as plain values.
      config: config of the model.
      selection: effects, scores and account.
      plan: plan made of the scores.
      knock_out: what `measure_knock_out` returned, or None.
      stability: what `stability` returned, or None.
      kv_dtype: dtype of the cache.

    Returns:
      The path of report.html.
    """
    quality = plan_quality(selection.scores, config, plan, dtype=kv_dtype)
    pictures = draw_all(folder, selection.scores, plan, quality, knock_out, stability)
    parts = [
        html.paragraph(_summary(selection.scores, plan, quality, record)),
        *_maps(selection.scores, pictures),
        *_knock_out(pictures, knock_out),
        *_stability(pictures, stability),
        html.heading("What plans keep and cost"),
        html.paragraph(_QUALITY),
        html.figure("Score mass kept over KV bytes that a token adds.", pictures["quality"]),
        quality_table(quality),
        html.heading("The heads with the highest scores"),
        head_table(selection.scores, config, plan),
        html.heading("What was measured, and what was left out"),
        *account_tables(selection),
        html.heading("Settings"),
        html.preformatted("\n".join(_assignments(record))),
        html.paragraph(", ".join(f"{name} {value}" for name, value in versions().items())),
    ]
    path = folder / REPORT
    path.write_text(html.page("Head selection", parts), encoding="utf-8")
    return path


def _summary(scores: HeadScores, plan: HeadPlan, quality: Quality, record: dict) -> str:
    heads, chosen = int(scores.softmax_LN.sum()), quality.chosen
    return (
        f"Of the {heads} softmax heads of {record['teacher']}, {plan.count} stay softmax by the "
        f"strategy {plan.strategy}; they hold {100 * chosen.score_mass:.1f} % of the score mass "
        f"and {receivers_kept(scores, plan)} of the {int(scores.receivers_LN.sum())} receivers. "
        f"They read {chosen.kv_heads} of {len(plan.fa_heads) * plan.kv_heads} KV heads, so a token "
        f"adds {chosen.kv_bytes_per_token} bytes to the cache. {int(scores.critical_LN.sum())} "
        f"heads are critical (an effect of at least 0.01 on some capability), "
        f"{int(scores.convertible_LN.sum())} convertible (below 0.01 in every sub-probe)."
    )


def _assignments(record: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns the config as the command line takes it, one line for each field."""
    lines = []
    for name, value in record.items():
        if isinstance(value, dict):
            lines += _assignments(value, f"{prefix}{name}.")
        elif name != "type":
            lines.append(f"{prefix}{name}={tuple(value) if isinstance(value, list) else value}")
    return lines


def _maps(scores: HeadScores, pictures: dict[str, Path]) -> list[str]:
    captions = {
        "receiver": "Direct effect: the share of the answer's logit difference that is lost with "
        "the head's output, mixers after it frozen. Mean over sub-probes.",
        "sender": "Effect through receivers: the head's output reaches only the heads that listen.",
        "total": "Total effect, nothing frozen; its size, since it may be negative.",
        "fused": "Fused score, with a ring on heads that stay softmax.",
        "retrieval": "Score of retrieval alone, the general sub-probes left out.",
        "chosen": "The plan.",
    }
    figures = [html.figure(text, pictures[n]) for n, text in captions.items() if n in pictures]
    notes = [] if "sender" in pictures else ["Senders were not measured."]
    if not scores.softmax_LN.all():
        notes.append("Hatched heads are delta-rule heads of the model already.")
    if scores.sender is not None and np.isnan(scores.sender.raw_PLN).any():
        notes.append("Heads hatched in the sender's map alone were ruled out, and not measured.")
    parts = [html.heading("Scores and plan"), html.side_by_side(figures)]
    return [*parts, *map(html.paragraph, notes)]


def _knock_out(pictures: dict[str, Path], knock_out: dict | None) -> list[str]:
    if knock_out is None:
        return [html.heading("Knock-out"), html.paragraph("Not measured.")]
    settings = knock_out["of"]["settings"]
    return [
        html.heading("Knock-out"),
        html.paragraph(
            f"Share of {settings['documents']} held-out documents of {settings['length']} tokens, "
            f"needles in each: {settings['needles']}, that the model answers by generation when "
            "heads put out their mean over the probes' documents and nothing else."
        ),
        html.figure("Accuracy over heads removed.", pictures["knock_out"]),
        knock_out_table(knock_out),
    ]


def _stability(pictures: dict[str, Path], stability: dict | None) -> list[str]:
    if stability is None:
        return [html.heading("Stability"), html.paragraph("Not measured.")]
    pairs = (
        f"Agreement of the fused score with that of all pairs, mean and range of "
        f"{stability['draws']} draws of pairs; hollow: one half of the pairs against the other."
    )
    parts = [html.heading("Stability"), html.figure(pairs, pictures["stability"])]
    if "length" in pictures:
        text = "Agreement of the scores at other document lengths with the selection's."
        parts.append(html.figure(text, pictures["length"]))
    reasons = [*stability["reasons"], *stability["lengths_left_out"].values()]
    return [*parts, *stability_tables(stability), *map(html.paragraph, reasons)]


_QUALITY = (
    'The cache holds a KV head while one of its query heads is softmax. "Best heads first" takes '
    'heads by score alone; "best use of each KV head" is the most score mass that any plan keeps '
    "with so many KV heads. For each ratio: its best heads, and as many heads on the fewest KV "
    "heads that keep all but 2 % of their score mass. No layer is made to keep a head here."
)
