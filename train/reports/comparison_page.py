"""Writes the comparison's report: a table on the terminal, report.json and report.html."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from hydrahead_jax.json_file import write_json
from train.reports import html


def table_rows(report: dict) -> tuple[list[str], list[list[str]]]:
    """Returns column names, and one row for the teacher and each student."""
    lengths = list(report["teacher"]["niah_single"])
    header = ["model", "softmax heads", "KV heads", "cache 32K"]
    header += [f"single {length}" for length in lengths]
    header += [f"multi {length}" for length in lengths]
    header += ["text loss"]
    models = {"teacher": report["teacher"], **report["students"]}
    return header, [_row(name, model) for name, model in models.items()]


def _row(name: str, model: dict) -> list[str]:
    cells = [name, str(model["fa_heads"]), str(model["kv_heads"])]
    cells.append(f"{model['cache_bytes_at_32k'] / 2**20:.1f} MiB")
    for task in ("niah_single", "niah_multikey"):
        cells += [f"{100 * accuracy:.0f} %" for accuracy in model[task].values()]
    return [*cells, "not finite" if model["text_loss"] is None else f"{model['text_loss']:.3f}"]


def print_table(report: dict) -> None:
    """Prints the table of all models; columns give document lengths."""
    header, rows = table_rows(report)
    table = Table(title="Retrieval by generation, exact match", box=box.SIMPLE_HEAD)
    for index, column in enumerate(header):
        side = "left" if index == 0 else "right"
        table.add_column(column.replace(" ", "\n"), justify=side, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 140).print(table)


def write_report(folder: Path, report: dict, pictures: dict[str, Path]) -> Path:
    """Writes report.json and a self-contained report.html; `pictures` maps captions to PNGs.

    Returns:
      The path of report.html.
    """
    write_json(folder / "report.json", report)
    path = folder / "report.html"
    path.write_text(_page(report, pictures), encoding="utf-8")
    return path


def _page(report: dict, pictures: dict[str, Path]) -> str:
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in report["seconds"].items())
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    parts = [
        html.paragraph(_ABOVE),
        html.table(*table_rows(report)),
        html.paragraph(f"{_exported(report)} {_BELOW}"),
        *(html.figure(caption, path) for caption, path in pictures.items()),
        html.paragraph(f"Time: {seconds}."),
        html.paragraph(f"Versions: {versions}."),
    ]
    return html.page("HydraHead on a small teacher", parts)


def _exported(report: dict) -> str:
    if "export_failure" in report:
        return f"The export failed: {report['export_failure']}."
    difference = report["export_max_abs_logit_difference"]
    if difference is None:
        return "PyTorch is not installed here, so the export was not compared with it."
    return f"Largest logit difference between JAX and the exported PyTorch model: {difference:.1e}."


_ABOVE = (
    "Each student keeps softmax attention on the heads of its plan; all other heads became Gated "
    "DeltaNet. Needle accuracy is exact match by generation on documents never trained on; columns "
    "give the document length in tokens, the first being the teacher's training length; single: "
    "one needle, multi: several keys; softmax heads: those that were kept; KV heads: those still "
    "cached."
)
_BELOW = (
    "Whether length extension holds, or 7:1 equals 3:1, cannot be concluded at this scale, and one "
    "draw of random heads says little: `make evidence` repeats the comparison over teachers and "
    "draws."
)
