"""Finds teacher and student of a config, or assumes them where they do not exist yet."""

import math
from typing import NamedTuple

from hydrahead_jax.config import ModelConfig, qwen3
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.interop import read_config
from hydrahead_jax.layer_plan import NativeHybridPlan
from hydrahead_jax.local_path import local_path
from hydrahead_jax.selection import budget
from train.commands.pretrain import PretrainConfig
from train.commands.transfer import TransferConfig, load_plan, student_config


class Models(NamedTuple):
    """Holds the configs of student and teacher.

    Attributes:
      student: config of the student.
      teacher: config of the teacher; None where a model is trained from scratch.
      assumptions: sentences on what is not known yet.
    """

    student: ModelConfig
    teacher: ModelConfig | None
    assumptions: tuple[str, ...]


def models_of(config: TransferConfig | PretrainConfig, *, alike: bool = False) -> Models:
    """Reads the teacher's folder and the head plan where they exist, and assumes them elsewhere.

    Args:
      alike: an assumed plan has the same heads in every layer, which `scan_layers` compiles as one.

    Raises:
      UserError: there is neither a teacher's folder nor a size, or they do not fit together.
    """
    if isinstance(config, PretrainConfig):
        return Models(config.model, None, ())
    teacher, about_teacher = _teacher(config)
    plan, about_plan = _plan(config, teacher, alike)
    student = student_config(config, plan, teacher)
    return Models(student, teacher, tuple(filter(None, (about_teacher, about_plan))))


def _teacher(config: TransferConfig) -> tuple[ModelConfig, str]:
    folder = local_path(config.teacher)
    if (folder / "config.json").is_file():
        return read_config(folder), ""
    if config.teacher_size is None:
        raise UserError(
            f"there is no teacher in {config.teacher}; to plan without it, give its size, such as "
            "teacher_size=1.7b"
        )
    try:
        return qwen3(config.teacher_size), f"the teacher is Qwen3 {config.teacher_size}"
    except ValueError as error:
        raise UserError(f"teacher_size: {error}") from error


def _plan(
    config: TransferConfig, teacher: ModelConfig, alike: bool
) -> tuple[HeadPlan | NativeHybridPlan, str]:
    if config.head_plan is None or local_path(config.head_plan).is_file():
        return load_plan(config), ""
    meshes = [stage.mesh or config.mesh for stage in config.stages]
    multiple = math.lcm(*(max(1, mesh.tensor) for mesh in meshes))
    plan = assumed_plan(teacher, budget(teacher, config.ratio), multiple, alike=alike)
    counts = list(dict.fromkeys(len(heads) for heads in plan.fa_heads))
    total = teacher.layers * teacher.query_heads
    return plan, (
        f"there is no head plan yet: {plan.count} of {total} heads stay softmax, "
        f"{' and '.join(map(str, counts))} of {'every layer' if alike else 'a layer in turns'}"
    )


def assumed_plan(
    teacher: ModelConfig, heads: int, multiple: int, *, alike: bool = False
) -> HeadPlan:
    """Makes a plan of about `heads` softmax heads; neighbouring layers differ, as in real plans.

    It has two kinds of layers only, because the compiler takes as long for each kind.

    Args:
      multiple: divides the softmax heads of every layer, and so the delta-rule heads.
      alike: whether there is only one kind of layers.
    """
    mean = max(multiple, round(heads / teacher.layers / multiple) * multiple)
    apart = 0 if alike else min(multiple * max(1, mean // (4 * multiple)), mean - multiple)
    spread = lambda count: tuple(i * teacher.query_heads // count for i in range(count))
    kinds = (spread(mean - apart), spread(mean + apart))
    return HeadPlan(
        fa_heads=tuple(kinds[layer % 2] for layer in range(teacher.layers)),
        query_heads=teacher.query_heads,
        kv_heads=teacher.kv_heads,
        strategy="assumed",
    )
