"""One teacher, several head plans: score, convert, evaluate, and put the results side by side."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
from hydrahead_jax.interop.hf_import import load_hf
from tokenizers import Tokenizer

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.evals.evaluate import EvalSettings, evaluate
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection import (
    HeadScores,
    SelectionSettings,
    allocate,
    budget,
    receivers_kept,
    select,
)
from train.corpus import stdlib_documents
from train.parallel import Task, run_parallel
from train.transfer import TransferConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """How one student's softmax heads are chosen; arguments of `selection.allocate`."""

    name: str
    strategy: str
    ratio: str
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Attributes:
    teacher: Hugging Face folder.
    out: folder of all results; a repeated run continues there.
    students: made and evaluated alike but for their head plans.
    selection: how the teacher's heads are scored.
    transfer: the three stages; its teacher, head plan and folder are filled in for each student.
    evaluation: of the teacher and of every student.
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
    """A loaded teacher with what is needed to question it."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: str) -> "Teacher":
        config, params = load_hf(Path(folder), dtype=np.float32)
        return cls(config, params, Tokenizer.from_file(str(Path(folder) / "tokenizer.json")))

    def text(self, split: str) -> np.ndarray:
        """Tokens of the standard library's own sources."""
        encoded = self.tokenizer.encode_batch(stdlib_documents(split))
        return np.concatenate([np.array(e.ids, np.int32) for e in encoded])


def compare(config: ComparisonConfig) -> dict:
    """Runs the comparison and returns what report.json holds under teacher, students, seconds."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    teacher = Teacher.load(config.teacher)
    measure = lambda: {
        **evaluate(
            teacher.config,
            teacher.params,
            teacher.tokenizer,
            teacher.text("held_out"),
            config.evaluation,
        ),
        **memory(teacher.config),
    }
    teacher_result = cached(out / "teacher.json", measure)
    clock.lap("evaluate teacher")
    scores = _score(teacher, config.selection, out)
    clock.lap("score heads")
    plans = {student.name: _plan(student, scores, teacher.config) for student in config.students}
    runs = {}
    for name, plan in plans.items():
        folder = out / "students" / name
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder / "head_plan.json")
        runs[name] = dataclasses.replace(
            config.transfer,
            teacher=config.teacher,
            head_plan=str(folder / "head_plan.json"),
            out=str(folder / "run"),
        )
    tasks = {
        name: Task(
            make_student,
            (run, config.evaluation),
            Path(run.run),
            sum(stage.steps for stage in run.stages),
            out / "students" / name / "output.log",
        )
        for name, run in runs.items()
    }
    results = run_parallel(tasks, config.processes)
    clock.lap("train and evaluate students")
    for name, plan in plans.items():
        results[name]["receivers_kept"] = receivers_kept(scores, plan)
    return {"teacher": teacher_result, "students": results, "seconds": clock.laps}


def memory(config: ModelConfig) -> dict:
    """What a model keeps in generation: softmax heads, KV heads, bytes at 32K tokens in bf16."""
    full = config.layers * config.query_heads
    heads = [getattr(m, "fa_heads", range(config.query_heads)) for m in config.mixers]
    return {
        "fa_heads": sum(len(h) for h in heads) if heads else full,
        "kv_heads": sum(len({config.kv_head(n) for n in h}) for h in heads),
        "cache_bytes_at_32k": cache_bytes(config, 32768),
    }


def cached(path: Path, compute) -> dict:
    """The JSON in `path`, computed and written if it is not there yet."""
    if not path.exists():
        result = compute()
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        temporary.rename(path)
    return json.loads(path.read_text())


class Clock:
    """Seconds spent between laps, by name."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 1)
        self._last = now


def _score(teacher: Teacher, settings: SelectionSettings, out: Path) -> HeadScores:
    path = out / "head_scores.csv"
    if not path.exists():
        scores, account = select(
            teacher.config, teacher.params, teacher.tokenizer, teacher.text("train"), settings
        )
        (out / "selection.json").write_text(json.dumps(account, indent=2) + "\n")
        scores.save_csv(path)
    return HeadScores.load_csv(path)


def _plan(student: Student, scores: HeadScores, config: ModelConfig) -> HeadPlan:
    return allocate(
        scores,
        config,
        student.strategy,
        fa_heads=budget(config, student.ratio),
        seed=student.seed,
    )
