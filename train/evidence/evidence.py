"""Repeats the comparison over several teachers and random draws, for means and ranges."""

import dataclasses

from rich.console import Console
from rich.table import Table

from hydrahead_jax.local_path import local_path
from train.commands.pretrain import PretrainConfig, pretrain
from train.evidence.comparison import ComparisonConfig, Student, compare
from train.evidence.parallel import Task, run_parallel
from train.evidence.spread import spread
from train.files.run_folder import METRICS, write_json
from train.files.versions import versions
from train.reports import markdown
from train.reports.comparison_page import print_table, table_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvidenceConfig:
    """Describes a comparison that is repeated for several teachers and random draws.

    Attributes:
      out: folder of all results; a repeated run continues there.
      comparison: comparison that is made once for each teacher.
      random_draws: seeds of "global-random" students, in addition to the comparison's students.
      pretrain: how further teachers are made.
      teacher_seeds: seeds of the further teachers; the comparison's own teacher comes first.
    """

    out: str
    comparison: ComparisonConfig
    random_draws: tuple[int, ...]
    pretrain: PretrainConfig
    teacher_seeds: tuple[int, ...]


def evidence(config: EvidenceConfig) -> dict:
    """Runs everything, writes evidence.json and evidence.md, prints the table."""
    out = local_path(config.out)
    seeds = {f"seed {seed}": _further_teacher(config, seed) for seed in config.teacher_seeds}
    run_parallel(
        {name: _pretrain_task(pretrain) for name, pretrain in seeds.items()},
        config.comparison.processes,
    )
    teachers = {"checked-in": config.comparison.teacher}
    teachers |= {name: pretrain.out for name, pretrain in seeds.items()}
    draws = tuple(
        Student(
            name=f"global-random-3:1 draw {seed}", strategy="global-random", ratio="3:1", seed=seed
        )
        for seed in config.random_draws
    )
    comparisons = {}
    for name, folder in teachers.items():
        comparison = dataclasses.replace(
            config.comparison,
            teacher=folder,
            out=str(out / name.replace(" ", "_")),
            students=(*config.comparison.students, *draws),
        )
        print(f"teacher: {name}", flush=True)
        comparisons[name] = compare(comparison)
    result = {"comparisons": comparisons, "versions": versions()}
    write_json(out / "evidence.json", result)
    header, rows = summary(comparisons)
    longer = table_rows(comparisons["checked-in"])
    tables = [markdown.table(header, rows), markdown.table(*longer)]
    (out / "evidence.md").write_text("\n".join(tables))
    print_table(comparisons["checked-in"])
    table = Table(*header, title=f"{len(teachers)} teachers, {len(draws)} random draws each")
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 140).print(table)
    return result


def _further_teacher(config: EvidenceConfig, seed: int) -> PretrainConfig:
    out = local_path(config.out)
    return dataclasses.replace(
        config.pretrain,
        seed=seed,
        run=str(out / f"pretrain-{seed}"),
        out=str(out / f"teacher-{seed}"),
    )


def _pretrain_task(config: PretrainConfig) -> Task:
    run = local_path(config.run)
    return Task(
        work=pretrain,
        arguments=(config,),
        metrics=run / f"seed_{config.seed}" / METRICS,
        steps=sum(stage.steps for stage in config.stages),
        log=run.with_name(f"{run.name}.log"),
    )


def summary(comparisons: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Computes means and ranges over teachers and draws.

    There is one row for the teacher and one for each kind of student.
    """
    length = next(iter(next(iter(comparisons.values()))["teacher"]["niah_single"]))
    header = ["model", "runs", f"single {length}", f"multi {length}", "text loss"]
    header += ["KV heads", "receivers kept"]
    groups: dict[str, list[dict]] = {"teacher": [c["teacher"] for c in comparisons.values()]}
    for comparison in comparisons.values():
        for name, student in comparison["students"].items():
            groups.setdefault(name.split(" draw ")[0], []).append(student)
    rows = []
    for name, models in groups.items():
        percent = lambda task, models=models: spread(
            [100 * m[task][length] for m in models], "{:.0f}"
        )
        kept = [m["receivers_kept"] for m in models if "receivers_kept" in m]
        rows.append(
            [
                name,
                str(len(models)),
                percent("niah_single"),
                percent("niah_multikey"),
                spread([m["text_loss"] for m in models], "{:.3f}"),
                spread([m["kv_heads"] for m in models], "{:.0f}"),
                ", ".join(map(str, kept)) or "all",
            ]
        )
    return header, rows
