"""Makes the planner's table of all shipped configs: `make planning`.

A row is a stage of a config on the machine that it is for. Each takes minutes; rows that are in
the JSON already, for the same settings, stay, so the command can be interrupted.
"""

import argparse
import dataclasses
import importlib
import pkgutil
from pathlib import Path

import configs
from hydrahead_jax.dataclass_json import to_plain
from hydrahead_jax.json_file import dumps, plain, read_json
from pallas_kernels.report.__main__ import replace_block
from pallas_kernels.report.provenance import provenance
from pallas_kernels.report.tables import markdown
from train.plan.command import device_count, plan_stage
from train.plan.models import models_of
from train.plan.stage_plan import GIB, Memory, StagePlan
from train.plan.table import scaled, seconds_text, verdict
from train.plan.target import parse_target

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "benchmarks" / "results" / "planning.json"
PAGE = ROOT / "docs" / "planning.md"
COLUMNS = (
    "stage",
    "mesh",
    "microbatches, remat",
    "state GiB",
    "gradients GiB",
    "activations GiB",
    "total of capacity GiB",
    "verdict",
    "model PFLOP",
    "sent GiB",
    "compute / memory / network at least",
    "tokens a day at most",
    "hours at least",
    "traced, compiled s",
)


def shipped() -> list[str]:
    """Returns the configs that say which machine they are for."""
    names = [module.name for module in pkgutil.iter_modules(configs.__path__)]
    return [n for n in names if hasattr(importlib.import_module(f"configs.{n}"), "MACHINE")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("configs", nargs="*", help="names; all that are shipped if none is given")
    parser.add_argument("--again", action="store_true", help="also rows that are there already")
    parser.add_argument("--alike", action="store_true", help="assume equal layers: minutes faster")
    options = parser.parse_args()
    for name in options.configs or shipped():
        make_rows(name, again=options.again, alike=options.alike)
    write_page(read())


def make_rows(name: str, *, again: bool, alike: bool) -> None:
    """Makes the rows of a config, and writes each as soon as it is known."""
    module = importlib.import_module(f"configs.{name}")
    config, target = module.config(), parse_target(module.MACHINE.target)
    models, count = models_of(config, alike=alike), device_count(target)
    for stage in config.stages:
        asked = plain(to_plain(dataclasses.replace(config, stages=(stage,))))
        key = f"{name} {stage.name} {target.name}"
        if read().get(key, {}).get("asked") == asked and not again:
            continue
        found = plan_stage(config, stage, target, count, models, print)
        print(f"{key}: {verdict(found)} {found.refusal or found.advice or ''}", flush=True)
        row = {
            "config": name,
            "target": target.name,
            "assumptions": list(models.assumptions),
            "made": provenance(),
            "asked": asked,
            "plan": dataclasses.asdict(found),
        }
        FIGURES.write_text(dumps(read() | {key: row}, indent=1) + "\n")


def read() -> dict[str, dict]:
    return read_json(FIGURES) if FIGURES.exists() else {}


def write_page(rows: dict[str, dict]) -> None:
    """Puts the rows into the page, a table for each config."""
    parts = []
    for name in shipped():
        mine = [row for row in rows.values() if row["config"] == name]
        if mine:
            title = f"### configs/{name}.py on {mine[0]['target']}"
            assumed = dict.fromkeys(text for row in mine for text in row["assumptions"])
            about = [f"- assumed: {text}" for text in assumed]
            about += [f"- {made}" for made in dict.fromkeys(row["made"] for row in mine)]
            plans = [read_plan(row["plan"]) for row in mine]
            about += [f"- {p.stage}: {p.refusal or p.advice}" for p in plans if not p.fits]
            table = markdown(COLUMNS, [cells(plan) for plan in plans])
            parts.append("\n\n".join([title, "\n".join(about), table]))
    replace_block(PAGE, "\n\n".join(parts), "planning")


def read_plan(fields: dict) -> StagePlan:
    memory = fields["memory"] and Memory(**fields["memory"])
    return StagePlan(**{**fields, "memory": memory})


def cells(plan: StagePlan) -> list[str]:
    """Returns one line of a table."""
    layout = [plan.stage, plan.mesh, f"{plan.microbatches}, {plan.remat}"]
    if plan.memory is None:
        return [*layout, *[""] * 4, verdict(plan)]
    memory, gib = plan.memory, lambda size: "?" if size is None else f"{size / GIB:.2f}"
    state = memory.trained + memory.frozen + memory.optimizer + memory.teacher
    line = [
        *layout,
        gib(state),
        gib(memory.gradients),
        gib(memory.activations),
        f"{gib(memory.total)} of {memory.capacity / GIB:.1f}",
        verdict(plan),
        f"{plan.flops / 1e15:.3g}",
    ]
    took = f"{plan.trace_s:.0f}, {plan.compile_s:.0f}"
    if plan.step_s is None:
        return [*line, *[""] * 4, took]
    sent = ", ".join(f"{kind} {gib(size)}" for kind, size in plan.sent.items())
    floors = (plan.compute_s, plan.memory_s, plan.network_s)
    return [
        *line,
        sent or "nothing",
        " / ".join(map(seconds_text, floors)),
        scaled(plan.tokens_a_day),
        f"{plan.hours:.2g}",
        took,
    ]


if __name__ == "__main__":
    main()
