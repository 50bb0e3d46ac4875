"""From a teacher and a head plan to a trained hybrid, in stages."""

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import HydraChoices, ModelConfig
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.interop import head_rms, load_hf, migrate
from hydrahead_jax.precision import Precision, compute_params, training_policy
from train.config_file import to_plain
from train.data import make_batches
from train.loop import Job, run
from train.paths import flatten
from train.run_folder import PLAN, copy_tokenizer, open_run, save_model
from train.stage import Stage, check_stages
from train.step import Teacher
from train.text import Corpus, load_corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Attributes:
    run: folder of checkpoints, metrics and the student.
    teacher: Hugging Face folder of a Qwen3 model.
    head_plan: JSON file written by `python -m train select`.
    stages: of training, in order.
    choices: of the hybrid layers.
    calibration_rows: of text, as long as those of the first stage, from which the heads' gains
      are initialised.
    seed: of new parameters and of the order of the data.
    precision: of the computation.
    """

    run: str
    teacher: str
    head_plan: str
    stages: tuple[Stage, ...]
    choices: HydraChoices = HydraChoices()
    calibration_rows: int = 32
    seed: int = 0
    precision: Precision = "auto"


def transfer(
    config: TransferConfig, say: Callable[[str], None] = print
) -> tuple[ModelConfig, dict]:
    """Runs what is left of the transfer; a run that is killed continues where it was.

    Returns:
      The student's config and its parameters, float32.

    Raises:
      UserError: the inputs are not right, or the run folder holds a different run.
    """
    plan = HeadPlan.load(Path(config.head_plan))
    teacher_folder, folder = Path(config.teacher), Path(config.run)
    teacher_config, teacher_params = load_hf(teacher_folder, jnp.float32)
    student = plan.student(teacher_config, config.choices)
    check_stages(config.stages, teacher_config.max_length)
    corpus = load_corpus(teacher_folder / "tokenizer.json", teacher_config)
    for stage in config.stages:
        make_batches(stage.data, corpus, config.seed)
    open_run(folder, _record(config, plan, teacher_params))
    save_model(folder, student)
    plan.save(folder / PLAN)
    copy_tokenizer(teacher_folder, folder)
    policy = training_policy(config.precision)
    job = Job(
        folder=folder,
        stages=config.stages,
        model=student,
        initial=lambda: initial_student(config, corpus, teacher_config, teacher_params, student),
        teacher=lambda: Teacher(teacher_config, compute_params(policy, teacher_params)),
        corpus=corpus,
        seed=config.seed,
        policy=policy,
        say=say,
    )
    result = run(job)
    if result.was_finished:
        say(f"{folder} is finished, {job.steps} steps; nothing to do")
    else:
        say(f"{folder} is finished after {job.steps} steps")
    return student, result.params


def initial_student(
    config: TransferConfig,
    corpus: Corpus,
    teacher_config: ModelConfig,
    teacher_params: dict,
    student: ModelConfig,
) -> dict:
    """The student before training: the teacher's weights, gains from calibration text."""
    data = config.stages[0].data
    tokens = np.concatenate(corpus.documents(data.text))
    length = min(data.length, len(tokens))
    starts = np.linspace(0, len(tokens) - length, config.calibration_rows).astype(int)
    tokens_BT = jnp.asarray(np.stack([tokens[start : start + length] for start in starts]))
    head_rms_LN = head_rms(teacher_config, teacher_params, tokens_BT)
    key = jax.random.key(config.seed)
    return migrate(teacher_config, teacher_params, student, key, head_rms_LN)


def _record(config: TransferConfig, plan: HeadPlan, teacher_params: dict) -> dict:
    """What determines the student; a plan or teacher that changed in place is another run."""
    checksum = 0
    for _, leaf in sorted(flatten(teacher_params).items()):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), checksum)
    return {
        "config": {k: v for k, v in to_plain(config).items() if k not in ("run", "head_plan")},
        "head_plan": to_plain(plan),
        "teacher_checksum": checksum,
    }
