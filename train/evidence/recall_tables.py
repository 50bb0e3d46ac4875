"""Makes the tables of models that learn recall, with means and ranges over seeds."""

from collections.abc import Iterable

from train.evidence.spread import spread

Table = tuple[str, list[str], list[list[str]]]
"""Holds a title, the names of the columns, and the rows."""


def tables(result: dict) -> list[Table]:
    """Returns the tables of what `recall` returns."""
    found = []
    for task, variants in result["tasks"].items():
        found += [_sizes(task, variants), *_accuracies(task, variants)]
        found += _windows(task, variants)
    if "conversion" in result:
        found.append(_conversion(result["conversion"]))
    return found


def _sizes(task: str, variants: dict) -> Table:
    first = {name: next(iter(runs.values())) for name, runs in variants.items()}
    lengths = list(next(iter(first.values()))["cache_bytes"])
    header = ["model", "seeds", "parameters", *(f"cache bytes {length}" for length in lengths)]
    rows = [
        [
            name,
            str(len(variants[name])),
            str(run["parameters"]),
            *(str(run["cache_bytes"][length]) for length in lengths),
        ]
        for name, run in first.items()
    ]
    return f"{task}: sizes; columns give the length in tokens", header, rows


def _accuracies(task: str, variants: dict) -> Iterable[Table]:
    """Yields a table for each length."""
    some = next(iter(next(iter(variants.values())).values()))["scores"]
    for length, counts in some.items():
        header = ["model", *(f"{count} pairs" for count in counts), f"loss, {list(counts)[-1]}"]
        rows = [
            [name, *_cells([run["scores"][length] for run in runs.values()])]
            for name, runs in variants.items()
        ]
        yield f"{task}: answers right in per cent, {length} tokens", header, rows


def _windows(task: str, variants: dict) -> Iterable[Table]:
    """Yields a table for each variant whose window was changed."""
    for name, runs in variants.items():
        changed = [run["windows"] for run in runs.values()]
        if not changed[0]:
            continue
        counts = next(iter(changed[0].values()))
        header = ["window", *(f"{count} pairs" for count in counts), f"loss, {list(counts)[-1]}"]
        rows = [[window, *_cells([one[window] for one in changed])] for window in changed[0]]
        yield f"{task}: {name}, window changed after training", header, rows


def _cells(runs: list[dict]) -> list[str]:
    """Returns accuracies for each count, and the loss of the last one."""
    cells = [spread([100 * run[count]["tokens"] for run in runs], "{:.0f}") for count in runs[0]]
    last = list(runs[0])[-1]
    return [*cells, spread([run[last]["loss"] for run in runs], "{:.2f}")]


def _conversion(report: dict) -> Table:
    """Groups students that differ in their seed only."""
    groups = {"teacher": [report["teacher"]]}
    for name, student in report["students"].items():
        groups.setdefault(name.split(" seed ")[0], []).append(student)
    length = next(iter(report["teacher"]["niah_single"]))
    header = ["model", "seeds", f"single {length}", f"multi {length}", "text loss"]
    header += ["KV heads", "cache 32K"]
    percent = lambda models, task: spread([100 * m[task][length] for m in models], "{:.0f}")
    rows = [
        [
            name,
            str(len(models)),
            percent(models, "niah_single"),
            percent(models, "niah_multikey"),
            spread([model["text_loss"] for model in models], "{:.3f}"),
            str(models[0]["kv_heads"]),
            f"{models[0]['cache_bytes_at_32k'] / 2**20:.1f} MiB",
        ]
        for name, models in groups.items()
    ]
    return "conversion: documents answered in per cent", header, rows
