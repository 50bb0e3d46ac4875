"""Compares kinds of layers by what small models learn to recall, and by a conversion."""

import dataclasses
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hydrahead_jax.errors import UserError
from hydrahead_jax.local_path import local_path
from train.commands.pretrain import Scales
from train.evidence.comparison import ComparisonConfig, compare
from train.evidence.parallel import Task, run_parallel
from train.evidence.recall_model import (
    RecallRun,
    Variant,
    has_window_and_slots,
    train_and_measure,
)
from train.evidence.recall_tables import tables
from train.evidence.recall_task import RecallTask, check_task
from train.evidence.short_compiles import compile_quickly
from train.files.run_folder import METRICS, write_json
from train.files.versions import versions
from train.reports import markdown
from train.reports.window_curves import save_window_curves


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """Describes models that learn recall from scratch, and the conversion of a teacher beside them.

    Attributes:
      out: folder of all results; a repeated run continues there.
      tasks: what the models learn, each task by models of its own.
      variants: the compared models, alike but for their last layer.
      seeds: seeds of the parameters and of the data; each variant is trained with each of them.
      scales: initial scales of the parameters.
      windows: windows that trained models with slots are measured at.
      conversion: conversions of one teacher; None leaves them out.
      processes: models trained at a time, each on its share of the cores.
    """

    out: str
    tasks: tuple[RecallTask, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    scales: Scales
    windows: tuple[int, ...] = ()
    conversion: ComparisonConfig | None = None
    processes: int = 2


def recall(config: RecallConfig) -> dict:
    """Runs everything, writes recall.json, recall.md and a picture for each task.

    Returns:
      The content of recall.json.

    Raises:
      UserError: the config does not fit together.
    """
    check(config)
    out = local_path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    compile_quickly()
    # Models of one variant compile the same programs, in processes of their own.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out.absolute() / "compiled"))
    runs = {f"{r.task.name} {r.variant.name} seed {r.seed}": r for r in _runs(config, out)}
    scores = run_parallel({name: _task(run) for name, run in runs.items()}, config.processes)
    result = {"tasks": {task.name: {} for task in config.tasks}}
    for name, run in runs.items():
        of_variant = result["tasks"][run.task.name].setdefault(run.variant.name, {})
        of_variant[str(run.seed)] = scores[name]
    if config.conversion is not None:
        result["conversion"] = compare(config.conversion)
    result["versions"] = versions()
    write_json(out / "recall.json", result)
    _report(config, result, out)
    return result


def check(config: RecallConfig) -> None:
    """Raises UserError where the config does not fit together."""
    for kind in ("tasks", "variants"):
        names = [item.name for item in getattr(config, kind)]
        if not names or len(set(names)) < len(names):
            raise UserError(f"{kind} need different names, and there must be one; they are {names}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds={config.seeds} must be different, and there must be one")
    if min(config.windows, default=0) < 0:
        raise UserError(f"windows={config.windows} must be 0 or more")
    for task in config.tasks:
        check_task(task)


def _runs(config: RecallConfig, out: Path) -> list[RecallRun]:
    """Returns the runs, the first seed of all variants first."""
    return [
        RecallRun(
            folder=str(out / task.name / f"{variant.name.replace(' ', '_')}-{seed}"),
            task=task,
            variant=variant,
            seed=seed,
            scales=config.scales,
            windows=config.windows,
        )
        for task in config.tasks
        for seed in config.seeds
        for variant in config.variants
    ]


def _task(run: RecallRun) -> Task:
    folder = local_path(run.folder)
    return Task(
        work=train_and_measure,
        arguments=(run,),
        metrics=folder / METRICS,
        steps=run.task.steps,
        log=folder.with_name(f"{folder.name}.log"),
    )


def _report(config: RecallConfig, result: dict, out: Path) -> None:
    """Writes and prints the tables, and draws the curves of models that have learned a window."""
    console = Console(width=None if Console().is_terminal else 140)
    found = tables(result)
    (out / "recall.md").write_text(
        "\n".join(f"{title}\n\n{markdown.table(header, rows)}" for title, header, rows in found)
    )
    for title, header, rows in found:
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    with_window = [variant.name for variant in config.variants if has_window_and_slots(variant)]
    for task, variants in result["tasks"].items():
        drawn = {name: variants[name] for name in with_window}
        save_window_curves(
            drawn, out / f"windows_{task}.png", title="Window changed after training"
        )
