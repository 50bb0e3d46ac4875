"""Writes the report of a KV cache's formats: tables in Markdown, and a picture."""

from pathlib import Path

from hydrahead_jax.kv_quality.errors import MEASURES
from train.reports import markdown
from train.reports.kv_curve import save_quality_by_bytes

PAGE, PICTURE = "report.md", "quality_by_bytes.png"
_ROUNDING, _SMALL = 1e-6, 1e-3
_KINDS = {"niah_single": "single", "niah_multikey": "multi"}
_TEXT = (
    "Per token, through the cache, against a raw cache of {dtype}: {windows} stretches of {length} "
    "tokens, every token read as the format stores it. Errors are means over KV heads on "
    "{calibration} other stretches: relative squared errors of keys, values and attention outputs, "
    "and the standard deviation of the scores' difference. Needles: documents answered of "
    "{documents}, exact match; single: one needle, multi: {needles}; columns give the tokens of a "
    "document{beyond}. Bytes: keys and values of a token in all layers, raw ones in bf16.\n"
)


def write_kv_report(folder: Path, report: dict) -> Path:
    """Writes report.md and its picture; returns the path of the former."""
    save_quality_by_bytes(report["formats"], folder / PICTURE)
    parts = [
        f"# KV cache formats of {report['of']}\n",
        _introduction(report),
        markdown.table(*format_rows(report)),
        f"## Quality over bytes\n\n![KL divergence over bytes a token]({PICTURE})\n",
        *_by_layer(report),
        _outliers(report),
        *_tuned(report),
    ]
    path = folder / PAGE
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def format_rows(report: dict) -> tuple[list[str], list[list[str]]]:
    """Returns column names, and one row for each format."""
    some = next(iter(report["formats"].values()))
    needles = [(kind, length) for kind in _KINDS for length in some[kind]]
    header = ["format", "bits", "bytes", "K error", "V error", "logit error", "output error"]
    header += ["KL", "same token", "text loss", *(f"{_KINDS[kind]} {n}" for kind, n in needles)]
    rows = [
        [
            name,
            f"{of['bits']:.2f}",
            f"{of['bytes_a_token']}",
            *(_number(of[m]) for m in ("k_relative_mse", "v_relative_mse")),
            *(_number(of[m]) for m in ("logit_error", "output_error", "kl")),
            f"{100 * of['same_token']:.1f} %",
            f"{of['text_loss']:.4f}",
            *(f"{100 * of[kind][length]:.0f} %" for kind, length in needles),
        ]
        for name, of in report["formats"].items()
    ]
    return header, rows


def _introduction(report: dict) -> str:
    settings, longest = report["inputs"]["settings"], report["trained_length"]
    lengths = next(iter(report["formats"].values()))["niah_single"]
    is_beyond = any(int(length) > longest for length in lengths)
    beyond = f", above {longest} more than the model was trained for" if is_beyond else ""
    names = ("windows", "calibration", "documents", "needles")
    known = {name: settings[name] for name in names} | {"dtype": report["inputs"]["dtype"]}
    return _TEXT.format(length=report["length"], beyond=beyond, **known)


def _by_layer(report: dict):
    """Yields a table of each error by layer: the mean of its KV heads, and the worst."""
    names = list(report["formats"])
    for measure, meaning in MEASURES.items():
        worst = min if measure.endswith("cosine") else max
        rows = []
        for layer in report["layers"]:
            heads = [layer["formats"][name][measure] for name in names]
            cells = [f"{_number(sum(x) / len(x))} ({_number(worst(x))})" for x in heads]
            rows.append([f"{layer['layer']}", f"{len(layer['kv_heads'])}", *cells])
        yield f"## By layer: {meaning}\n\nMean of the layer's KV heads, and the worst of them.\n"
        yield markdown.table(["layer", "KV heads", *names], rows)


def _outliers(report: dict) -> str:
    threshold = report["inputs"]["settings"]["outlier"]
    found = [
        f"- layer {layer['layer']}, KV head {head}, {side}: channel {of['channel']}, "
        f"{of['times_median']:.1f} times\n"
        for layer in report["layers"]
        for side, channels in layer["channels"].items()
        for head, of in zip(layer["kv_heads"], channels, strict=True)
        if head in layer["outlier_heads"][side]
    ]
    return (
        "## Heads with outlier channels\n\n"
        f"A channel's root mean square is more than {threshold:g} times the median of the head's "
        f"channels.\n\n{''.join(found) or 'None.'}\n"
    )


def _tuned(report: dict):
    """Yields the text and the table of UltraQuant's c by layer."""
    if not report["tuned"]:
        return
    gains = [
        f"{100 * of['keys']:.1f} % of the keys' squared error and {100 * of['values']:.1f} % of "
        f"the values' against c = {c} in all layers"
        for c, of in report["gain"].items()
        if of is not None
    ]
    said = f"Tuning removes {', and '.join(gains)} (means over layers).\n" if gains else ""
    rows = [
        [
            f"{layer['layer']}",
            *(
                cell
                for side in ("keys", "values")
                for cell in (f"{layer[side]['c']:g}", _number(layer[side]["relative_mse"]))
            ),
        ]
        for layer in report["tuned"]
    ]
    yield f"## UltraQuant's c by layer\n\n{said}"
    yield markdown.table(["layer", "c of keys", "K error", "c of values", "V error"], rows)


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    if abs(value) < _ROUNDING:
        return "0"
    return f"{value:.4f}" if abs(value) >= _SMALL else f"{value:.1e}"
