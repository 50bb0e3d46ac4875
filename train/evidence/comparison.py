"""Converts one teacher by several plans: scores, converts, evaluates and compares."""

import dataclasses
import time
from pathlib import Path

import numpy as np

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import to_plain
from hydrahead_jax.evals.evaluate import EvalSettings, evaluate
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.interop.hf_import import load_hf
from hydrahead_jax.layer_plan import NativeHybridPlan
from hydrahead_jax.local_path import local_path
from hydrahead_jax.resumable import cached
from hydrahead_jax.selection import (
    HeadScores,
    SelectionSettings,
    allocate,
    budget,
    receivers_kept,
    select,
)
from hydrahead_jax.selection.probes.file import save_probes
from train.commands.transfer import TransferConfig, transfer
from train.data.stdlib_text import Split
from train.data.text import Corpus, TextSource, load_corpus
from train.evidence.parallel import Task, run_parallel
from train.files.run_folder import METRICS, PLAN, PROBES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """Says how one student's softmax heads are chosen; holds arguments of `selection.allocate`.

    Attributes:
      native_hybrid: makes native hybrid attention of all layers; no heads are chosen.
      training_seed: added to the seed of the transfer: new parameters and the order of the data.
    """

    name: str
    strategy: str = "global-interp-C"
    ratio: str = "3:1"
    seed: int = 0
    native_hybrid: NativeHybridPlan | None = None
    training_seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Describes a comparison of students that have the same teacher.

    Attributes:
      teacher: Hugging Face folder.
      out: folder of all results; a repeated run continues there.
      students: students that are made and evaluated alike except for their plans and seeds.
      selection: how the teacher's heads are scored.
      transfer: the three stages; its teacher, plan and folder are filled in for each student.
      evaluation: settings for evaluating the teacher and every student.
      processes: students trained at a time, each on its share of the cores.
    """

    teacher: str
    out: str
    students: tuple[Student, ...]
    selection: SelectionSettings
    transfer: TransferConfig
    evaluation: EvalSettings
    processes: int = 2


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Holds a loaded teacher with its tokenizer and its text."""

    config: ModelConfig
    params: dict
    corpus: Corpus

    @classmethod
    def load(cls, folder: str) -> "Teacher":
        config, params = load_hf(folder, dtype=np.float32)
        return cls(config, params, load_corpus(local_path(folder) / "tokenizer.json", config))

    def text(self, split: Split) -> np.ndarray:
        """Returns the tokens of the standard library's own sources."""
        return self.corpus.haystack(TextSource(), split).tokens


def compare(config: ComparisonConfig) -> dict:
    """Runs the comparison and returns the teacher, students and seconds of report.json."""
    out = local_path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    teacher = Teacher.load(config.teacher)
    teacher_result = cached(
        out / "teacher.json",
        {"teacher": config.teacher, "evaluation": to_plain(config.evaluation)},
        lambda: measure(teacher.config, teacher.params, teacher, config.evaluation),
    )
    clock.lap("evaluate teacher")
    scores = _score(teacher, config, out)
    clock.lap("score heads")
    plans = {student.name: _plan(student, scores, teacher.config) for student in config.students}
    runs = {student.name: _run(config, student, plans[student.name]) for student in config.students}
    tasks = {
        name: Task(
            work=make_student,
            arguments=(run, config.evaluation),
            metrics=Path(run.run) / METRICS,
            steps=sum(stage.steps for stage in run.stages),
            log=Path(run.run).with_name("output.log"),
        )
        for name, run in runs.items()
    }
    results = run_parallel(tasks, config.processes)
    clock.lap("train and evaluate students")
    for name, plan in plans.items():
        if isinstance(plan, HeadPlan):
            results[name]["receivers_kept"] = receivers_kept(scores, plan)
    return {"teacher": teacher_result, "students": results, "seconds": clock.laps}


def make_student(run: TransferConfig, evaluation: EvalSettings) -> dict:
    """Trains and evaluates one student; runs in a process of its own."""
    config, params = transfer(run)
    return cached(
        Path(run.run).with_name("evaluation.json"),
        {"run": to_plain(run), "evaluation": to_plain(evaluation)},
        lambda: measure(config, params, Teacher.load(run.teacher), evaluation),
    )


def measure(config: ModelConfig, params: dict, teacher: Teacher, settings: EvalSettings) -> dict:
    """Returns one model's row of the report: accuracies, text loss, heads, and the cache's size."""
    haystack, corpus = teacher.text("held_out"), teacher.corpus
    heads = [config.softmax_heads(layer) for layer in range(config.layers)]
    return {
        **evaluate(config, params, corpus.tokenizer, haystack, settings, stops=corpus.stops),
        "fa_heads": sum(len(h) for h in heads),
        "kv_heads": sum(len({config.kv_head(n) for n in h}) for h in heads),
        "cache_bytes_at_32k": cache_bytes(config, 32768, kv_format=settings.kv_cache),
    }


class Clock:
    """Measures the seconds between laps, by name."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 1)
        self._last = now


def _score(teacher: Teacher, config: ComparisonConfig, out: Path) -> HeadScores:
    path = out / "head_scores.csv"

    def score() -> dict:
        selection = select(
            teacher.config,
            teacher.params,
            teacher.corpus.tokenizer,
            teacher.text("train"),
            config.selection,
            store=out / "pairs",
        )
        selection.scores.save_csv(path)
        save_probes(out / PROBES, selection.probes, selection.pairs, teacher.corpus.tokenizer)
        return selection.account

    of = {"teacher": config.teacher, "selection": to_plain(config.selection)}
    cached(out / "selection.json", of, score)
    return HeadScores.load_csv(path)


def _plan(student: Student, scores: HeadScores, config: ModelConfig) -> HeadPlan | NativeHybridPlan:
    if student.native_hybrid is not None:
        return student.native_hybrid
    heads = budget(config, student.ratio)
    return allocate(scores, config, student.strategy, fa_heads=heads, seed=student.seed)


def _run(
    config: ComparisonConfig, student: Student, plan: HeadPlan | NativeHybridPlan
) -> TransferConfig:
    """Returns the student's transfer, and writes its head plan, if it has one, beside it."""
    folder = student_folder(Path(config.out), student.name)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(plan, HeadPlan):
        plan.save(folder / PLAN)
        of = {"head_plan": str(folder / PLAN)}
    else:
        of = {"head_plan": None, "native_hybrid": plan}
    return dataclasses.replace(
        config.transfer,
        teacher=config.teacher,
        run=str(folder / "run"),
        seed=config.transfer.seed + student.training_seed,
        **of,
    )


def student_folder(out: Path, name: str) -> Path:
    """Returns the folder of one student of a comparison.

    A ratio's colon is replaced, because file names should have none.
    """
    return out / "students" / name.replace(":", "_to_").replace(" ", "_")
