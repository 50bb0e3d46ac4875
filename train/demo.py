"""The whole path on one machine, with a report at the end."""

import dataclasses
from pathlib import Path

import numpy as np

from hydrahead_jax.evals.niah import needle_document, needle_symbols
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection import HeadScores
from hydrahead_jax.selection.heat_map import save_heat_map, save_knock_out_curve
from hydrahead_jax.selection.knockout import knock_out, mean_heads, teacher_forced_accuracy
from hydrahead_jax.selection.ranking import random_order, ranking
from train.comparison import Clock, ComparisonConfig, Teacher, compare, student_folder
from train.export import export_run
from train.plots import save_loss_curves
from train.report import print_table, write_report
from train.run_folder import METRICS, PLAN
from train.versions import versions


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnockOut:
    """Attributes:
    counts: how many heads are removed, each a point of the curve.
    documents: held-out needle documents a point.
    needles: in each of them.
    draws: random orders beside the order of the scores.
    """

    counts: tuple[int, ...]
    documents: int = 64
    needles: int = 1
    draws: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The first student of the comparison is the one that is exported and drawn."""

    comparison: ComparisonConfig
    knock_out: KnockOut


def demo(config: DemoConfig) -> dict:
    """Runs the comparison, exports the first student, writes report.html and report.json.

    Returns:
      What stands in report.json.
    """
    out = Path(config.comparison.out)
    report = compare(config.comparison)
    clock = Clock()
    first = config.comparison.students[0].name
    exported = []
    difference = export_run(student_folder(out, first) / "run", out / "export", exported.append)
    clock.lap("export")
    pictures = draw(config, out)
    clock.lap("knock-out and pictures")
    report["export_max_abs_logit_difference"] = difference
    report["seconds"] |= clock.laps
    report["versions"] = versions()
    page = write_report(out, report, pictures)
    print_table(report)
    print(*exported, f"report: {page}", sep="\n")
    return report


def draw(config: DemoConfig, out: Path) -> dict[str, Path]:
    """The report's pictures, by caption."""
    teacher = Teacher.load(config.comparison.teacher)
    scores = HeadScores.load_csv(out / "head_scores.csv")
    names = [student.name for student in config.comparison.students]
    plan = HeadPlan.load(student_folder(out, names[0]) / PLAN)
    heat_map, curve, losses = (out / f"{n}.png" for n in ("heat_map", "knock_out", "losses"))
    save_heat_map(scores.score_LN, heat_map, plan=plan, title=f"Head scores, {names[0]}")
    by_score, at_random = knock_out_curves(config, teacher, scores)
    save_knock_out_curve(config.knock_out.counts, by_score, at_random, curve)
    metrics = {name: student_folder(out, name) / "run" / METRICS for name in names}
    stages = tuple(stage.name for stage in config.comparison.transfer.stages)
    save_loss_curves(losses, metrics, stages)
    return {
        "Receiver score of each head: how much of the answer's logit difference it carries "
        f"directly. Rings mark the heads that stay softmax in {names[0]}.": heat_map,
        "Knock-out in the teacher: accuracy when heads are replaced by their mean output, the "
        "highest scores first, against random orders.": curve,
        "Losses of the three stages.": losses,
    }


def knock_out_curves(
    config: DemoConfig, teacher: Teacher, scores: HeadScores
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy in score order [C] and in random orders [S, C], on held-out documents."""
    settings = config.knock_out
    text, symbols = teacher.text("held_out"), needle_symbols(teacher.tokenizer)
    rng = np.random.default_rng(config.comparison.evaluation.seed)
    length = config.comparison.evaluation.lengths[0]
    make = lambda: needle_document(symbols, text, rng, length=length, needles=settings.needles)
    documents = [make() for _ in range(settings.documents)]
    tokens_BT = np.stack([document.tokens_T for document in documents])
    answer_BT = np.stack([document.answer_T for document in documents])
    mean_LNH = mean_heads(teacher.config, teacher.params, tokens_BT)
    accuracy = teacher_forced_accuracy(teacher.config, teacher.params, tokens_BT, answer_BT)
    curve = lambda order: knock_out(order, settings.counts, mean_LNH, accuracy)
    shape = (teacher.config.layers, teacher.config.query_heads)
    by_score = curve(ranking(scores, kv_heads=teacher.config.kv_heads))
    at_random = np.stack([curve(random_order(*shape, seed)) for seed in range(settings.draws)])
    return by_score, at_random
