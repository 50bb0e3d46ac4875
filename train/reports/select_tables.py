"""Shows numbers of a selection as HTML tables."""

from typing import Any

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection import HeadScores, Selection
from hydrahead_jax.selection.plans.quality import Quality
from hydrahead_jax.selection.scores.ranking import ranking
from train.reports import html

_ROWS = (16, 48)
_NONE = "-"


def head_table(scores: HeadScores, config: ModelConfig, plan: HeadPlan) -> str:
    """Lists the critical heads in order, at least 16 and at most 48 heads."""
    order = ranking(scores, kv_heads=config.kv_heads)
    count = min(max(_ROWS[0], int(scores.critical_LN.sum())), _ROWS[1], len(order))
    direct_LN = scores.receiver.clamped_PLN.mean(axis=0)
    sent_LN = None if scores.sender is None else scores.sender.clamped_PLN.mean(axis=0)
    total_LN = None if scores.total_PLN is None else scores.total_PLN.mean(axis=0)
    kappa_LN = np.mean([scores.kappa_LN(c) for c in scores.capability_names], axis=0)
    score_LN, critical_LN = scores.score_LN, scores.critical_LN
    header = ["place", "layer", "head", "KV head", "score", "direct", "through receivers", "total"]
    header += ["kappa", "critical", "stays softmax"]
    rows = []
    for place, (layer, head) in enumerate(order[:count], start=1):
        at = (layer, head)
        others = (np.nan if x_LN is None else x_LN[at] for x_LN in (sent_LN, total_LN))
        numbers = [score_LN[at], direct_LN[at], *others]
        flags = [bool(critical_LN[at]), head in plan.fa_heads[layer]]
        rows.append(
            [
                *map(str, (place, layer, head, config.kv_head(head))),
                *map(_number, numbers),
                f"{kappa_LN[at]:.2f}",
                *("yes" if flag else "no" for flag in flags),
            ]
        )
    caption = f"{count} of {len(order)} heads; effects are means over all sub-probes."
    return html.table(header, rows, caption)


def knock_out_table(knock_out: dict[str, Any]) -> str:
    header = ["heads removed", *map(str, knock_out["counts"])]
    rows = [
        [name, *(_percent(value) for value in values)]
        for name, values in knock_out["curves"].items()
    ]
    return html.table(header, rows)


def stability_tables(stability: dict[str, Any]) -> list[str]:
    header = [
        "rank correlation, critical heads",
        "rank correlation, all heads",
        "overlap (Jaccard)",
    ]
    keys = ("spearman_critical", "spearman_all", "jaccard")
    rows = lambda name, by: [
        [str(row[by]), *(_spread(row[key]) for key in keys)] for row in stability[name]
    ]
    caption = (
        f"{stability['critical_heads']} heads are critical with all pairs; the overlap is of as "
        "many best heads."
    )
    tables = [
        html.table(["pairs, against all", *header], rows("over_pairs", "pairs"), caption),
        html.table(["pairs in each half", *header], rows("split_half", "pairs")),
    ]
    if stability["over_length"]:
        tables.append(html.table(["tokens", *header], rows("over_length", "length")))
    return tables


def quality_table(quality: Quality) -> str:
    header = ["ratio", "heads", "KV heads", "bytes a token", "score mass"]
    header += ["KV heads, 2 % slack", "bytes a token", "score mass", "bytes saved"]
    rows = []
    for ratio, naive, aware in quality.budgets:
        saved = 1 - aware.kv_bytes_per_token / naive.kv_bytes_per_token
        of = lambda cost: [
            str(cost.kv_heads),
            str(cost.kv_bytes_per_token),
            f"{100 * cost.score_mass:.1f} %",
        ]
        rows.append([ratio, str(naive.fa_heads), *of(naive), *of(aware), f"{100 * saved:.0f} %"])
    return html.table(header, rows)


def account_tables(selection: Selection) -> list[str]:
    """Shows pairs by sub-probe, how senders were found, and what attribution alone gives."""
    account = selection.account
    rows = [
        [
            probe.name,
            probe.capability,
            probe.counterfactual,
            str(len(pairs.tokens_BT)),
            str(account["skipped"][probe.name]),
            f"{account['clean_readout'][probe.name]:.2f}",
            f"{account['corrupted_readout'][probe.name]:.2f}",
        ]
        for probe, pairs in zip(selection.probes, selection.pairs, strict=True)
    ]
    header = ["sub-probe", "capability", "counterfactual", "pairs", "left out"]
    header += ["readout of x", "readout of x'"]
    caption = "A pair is left out where the readouts of x and x' differ by less than 0.5."
    gini_L = account["gini_by_layer"]
    gini = (
        f"Gini coefficient of the effects within a layer: mean {np.mean(gini_L):.2f}, from "
        f"{min(gini_L):.2f} to {max(gini_L):.2f}; by layer: "
        f"{', '.join(f'{value:.2f}' for value in gini_L)}."
    )
    return [html.table(header, rows, caption), html.paragraph(gini), *_senders(account["senders"])]


def _senders(account: dict[str, Any] | None) -> list[str]:
    if account is None:
        return [html.paragraph("Senders were not measured.")]
    rounds = account["rounds"]
    text = (
        f"Senders by the method {account['method']}, in {len(rounds)} rounds of asking who feeds "
        f"the heads found so far ({', '.join(str(r['receivers']) for r in rounds) or 'no'} "
        f"listening); {'no new one in the last' if account['converged'] else 'not converged'}."
    )
    parts = [html.paragraph(text)]
    if (missed := account.get("missed")) and missed["ruled_out"]:
        parts.append(
            html.paragraph(
                f"Attribution ruled out {missed['ruled_out']} heads as senders; of "
                f"{missed['sampled']} of them, drawn at random and patched, the largest effect is "
                f"{missed['largest_in_sample']:.4f}, so all of them carry about "
                f"{missed['estimated_mass']:.4f} together."
            )
        )
    rows = [
        [kind, str(a["heads"]), _number(a["spearman"]), str(a["top"]), _percent(a["overlap"])]
        for kind, a in account.get("attribution", {}).items()
    ]
    header = ["effect", "heads compared", "rank correlation", "top", "overlap of the top"]
    caption = "Attribution patching, one backward pass, beside the exact effects."
    return [*parts, html.table(header, rows, caption)] if rows else parts


def _number(value: float | None) -> str:
    return _NONE if value is None or np.isnan(value) else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.0f} %"


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return _NONE
    mean, low, high = (f"{values[name]:.2f}" for name in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low} to {high})"
