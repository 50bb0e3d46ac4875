"""Runs every step of a conversion on one machine, with a report at the end."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.local_path import local_path
from hydrahead_jax.selection import HeadScores
from hydrahead_jax.selection.checks.knockout import KnockOutSettings
from hydrahead_jax.selection.probes.file import load_probes
from train.commands.export import export_run
from train.evidence.comparison import Clock, ComparisonConfig, Teacher, compare, student_folder
from train.evidence.short_compiles import compile_quickly
from train.files.run_folder import METRICS, PLAN, PROBES
from train.files.versions import versions
from train.reports.comparison_page import print_table, write_report
from train.reports.curves import save_knock_out_curves
from train.reports.heat_map import save_heat_map
from train.reports.loss_curves import save_loss_curves
from train.select.knock_out import KNOCK_OUT, knock_out_questions, measure_knock_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Describes the demo; the first student of the comparison is exported and drawn."""

    comparison: ComparisonConfig
    knock_out: KnockOutSettings


def demo(config: DemoConfig) -> dict:
    """Runs the comparison, exports the first student, writes report.html and report.json.

    Returns:
      The content of report.json.

    Raises:
      UserError: the export failed; the report is written all the same, and says so.
    """
    compile_quickly()
    out = local_path(config.comparison.out)
    report = compare(config.comparison)
    clock = Clock()
    run = student_folder(out, config.comparison.students[0].name) / "run"
    with ThreadPoolExecutor(1) as beside:
        exported = beside.submit(_export, run, out / "export")
        pictures = draw(config, out)
        difference, sentence, failure = exported.result()
    clock.lap("export, knock-out and pictures")
    report["export_max_abs_logit_difference"] = difference
    if failure is not None:
        report["export_failure"] = sentence
    report["seconds"] |= clock.laps
    report["versions"] = versions()
    page = write_report(out, report, pictures)
    print_table(report)
    if failure is not None:
        print(f"report: {page}", flush=True)
        raise UserError(f"the export failed: {sentence}") from failure
    print(sentence, f"report: {page}", sep="\n")
    return report


def _export(run: Path, out: Path) -> tuple[float | None, str, Exception | None]:
    """Returns the difference from PyTorch, a sentence, and the error if there was one.

    An export depends on versions of other libraries; its failure must not lose minutes of training.
    """
    said = []
    try:
        return export_run(run, out, said.append), " ".join(said), None
    except UserError as error:
        return None, str(error), error
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0], error


def draw(config: DemoConfig, out: Path) -> dict[str, Path]:
    """Draws the report's pictures and returns their files, by caption."""
    teacher = Teacher.load(config.comparison.teacher)
    scores = HeadScores.load_csv(out / "head_scores.csv")
    names = [student.name for student in config.comparison.students]
    plan = HeadPlan.load(student_folder(out, names[0]) / PLAN)
    heat_map, curve, losses = (out / f"{n}.png" for n in ("heat_map", "knock_out", "losses"))
    save_heat_map(scores.score_LN, heat_map, plan=plan, title=f"Head scores, {names[0]}")
    knock_out = _knock_out(config, teacher, scores, out)
    save_knock_out_curves(knock_out["counts"], knock_out["curves"], curve)
    metrics = {name: student_folder(out, name) / "run" / METRICS for name in names}
    stages = tuple(stage.name for stage in config.comparison.transfer.stages)
    save_loss_curves(losses, metrics, stages)
    return {
        "Score of each head: the share of the answer's logit difference that it carries, directly "
        f"or through others. Rings mark the heads that stay softmax in {names[0]}.": heat_map,
        "Knock-out in the teacher: documents answered when heads put out their mean alone, "
        "the highest scores first, the lowest first, and in random orders.": curve,
        "Losses of the three stages.": losses,
    }


def _knock_out(config: DemoConfig, teacher: Teacher, scores: HeadScores, out: Path) -> dict:
    length = config.comparison.evaluation.lengths[0]
    settings = dataclasses.replace(config.knock_out, length=config.knock_out.length or length)
    held_out = Haystack.of(teacher.text("held_out"))
    questions = knock_out_questions(teacher.corpus, held_out, settings, "symbols")
    pairs = [pairs for _, pairs in load_probes(out / PROBES)]
    path = out / KNOCK_OUT
    return measure_knock_out(
        path, teacher.config, teacher.params, questions, scores, pairs, settings
    )
