"""Trains a hybrid from a teacher and a plan of its layers, in stages."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hydrahead_jax.config import HydraChoices, ModelConfig
from hydrahead_jax.dataclass_json import RECORDED_IF_SET, to_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.interop import head_rms, migrate, read_config
from hydrahead_jax.layer_plan import NativeHybridPlan
from hydrahead_jax.local_path import local_path
from hydrahead_jax.precision import Precision, compute_params, training_policy
from hydrahead_jax.sharding import MeshConfig, make_layout
from train import distributed
from train.data.batches import calibration_tokens, make_batches
from train.data.text import Corpus, load_corpus
from train.files.run_folder import PLAN, copy_tokenizer, open_run, save_model
from train.run.loop import Job, run
from train.run.settings import RunSettings
from train.run.train_step import Teacher
from train.stage.mesh_checks import check_mesh
from train.stage.stage import Stage, check_stages
from train.teacher.cached_batches import check_cache
from train.teacher.loaded import LoadedTeacher
from train.teacher.migrate_on_mesh import migrate_on

_FREE_TO_CHANGE = (
    "run",
    "head_plan",
    "mesh",
    "running",
    "microbatches",
    "remat",
    "teacher_size",
    "ratio",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Describes the conversion of a teacher into a hybrid.

    Attributes:
      run: folder of checkpoints, metrics and the student.
      teacher: Hugging Face folder of a Qwen3 model.
      head_plan: JSON file written by `python -m train select`; it makes a HydraHead hybrid.
      stages: stages of training, in order.
      native_hybrid: makes native hybrid attention of all layers, in place of `head_plan`.
      choices: design choices of HydraHead layers.
      calibration_rows: rows of text that initialise the heads' gains; they are as long as those of
        the first stage.
      seed: seed of new parameters and of the order of the data.
      precision: precision of the computation.
      mesh: mesh of devices, for stages that name none.
      running: how the run is kept going.
      teacher_size: size of Qwen3, such as "1.7b"; `plan` needs it where the teacher does not exist
        yet.
      ratio: delta-rule heads to softmax heads; `plan` assumes it where there is no head plan yet.
    """

    run: str
    teacher: str
    head_plan: str | None = None
    stages: tuple[Stage, ...]
    native_hybrid: NativeHybridPlan | None = dataclasses.field(
        default=None, metadata=RECORDED_IF_SET
    )
    choices: HydraChoices = HydraChoices()
    calibration_rows: int = 32
    seed: int = 0
    precision: Precision = "auto"
    mesh: MeshConfig = MeshConfig()
    running: RunSettings = RunSettings()
    teacher_size: str | None = None
    ratio: str = "3:1"


def transfer(
    config: TransferConfig, say: Callable[[str], None] = print
) -> tuple[ModelConfig, dict]:
    """Runs the remaining stages of a transfer; a run that was killed continues where it was.

    Returns:
      The student's config and its parameters, float32.

    Raises:
      UserError: the inputs are not right, or the run folder holds a different run.
    """
    teacher_folder, folder = local_path(config.teacher), local_path(config.run)
    plan = load_plan(config)
    teacher_config = read_config(teacher_folder)
    student = student_config(config, plan, teacher_config)
    check_stages(config.stages, teacher_config.max_length, hybrid=True)
    for stage in config.stages:
        mesh = stage.mesh or config.mesh
        check_mesh(stage, mesh, len(jax.devices()), student, teacher_config)
    corpus = load_corpus(teacher_folder / "tokenizer.json", teacher_config)
    for stage in config.stages:
        make_batches(stage.data, corpus, config.seed)
    layout = make_layout(config.stages[0].mesh or config.mesh)
    loaded = LoadedTeacher(teacher_folder, layout)
    for stage in config.stages:
        if stage.teacher_cache is not None:
            check_cache(stage, config.seed, teacher_config, loaded.checksum, corpus)
    open_run(folder, _record(config, plan, loaded.checksum))
    save_model(folder, student)
    if isinstance(plan, HeadPlan) and distributed.is_first():
        plan.save(folder / PLAN)
    copy_tokenizer(teacher_folder, folder)
    policy = training_policy(config.precision)
    job = Job(
        folder=folder,
        stages=config.stages,
        model=student,
        initial=lambda: initial_student(config, corpus, loaded, student),
        teacher=lambda: Teacher(teacher_config, compute_params(policy, loaded.take())),
        release=loaded.take,
        corpus=corpus,
        seed=config.seed,
        policy=policy,
        mesh=config.mesh,
        running=config.running,
        say=say,
    )
    result = run(job)
    if result.was_finished:
        say(f"{folder} is finished, {job.steps} steps; nothing to do")
    else:
        say(f"{folder} is finished after {job.steps} steps")
    return student, result.params


def load_plan(config: TransferConfig) -> HeadPlan | NativeHybridPlan:
    """Returns what the config says of the hybrid's layers.

    Raises:
      UserError: it says nothing, or two things, or the head plan cannot be read.
    """
    if (config.head_plan is None) == (config.native_hybrid is None):
        raise UserError(
            "a transfer needs either head_plan, a file for a HydraHead hybrid, or native_hybrid, a "
            "NativeHybridPlan; set one of them and leave the other None"
        )
    return config.native_hybrid or HeadPlan.load(local_path(config.head_plan))


def student_config(
    config: TransferConfig, plan: HeadPlan | NativeHybridPlan, teacher: ModelConfig
) -> ModelConfig:
    """Returns the config of the hybrid that a plan makes of a teacher; raises as the plan does."""
    if isinstance(plan, NativeHybridPlan):
        return plan.student(teacher)
    return plan.student(teacher, config.choices)


def initial_student(
    config: TransferConfig, corpus: Corpus, teacher: LoadedTeacher, student: ModelConfig
) -> dict:
    """Returns the student before training: the teacher's weights, gains from calibration text."""
    data = config.stages[0].data
    rows_BT = calibration_tokens(data, corpus, config.calibration_rows, data.length)
    key = jax.random.key(config.seed)
    if teacher.layout is None:
        head_rms_LN = head_rms(teacher.config, teacher.params, jnp.asarray(rows_BT))
        return migrate(teacher.config, teacher.params, student, key, head_rms_LN)
    return migrate_on(teacher.layout, teacher.config, teacher.params, student, key, rows_BT)


def _record(
    config: TransferConfig, plan: HeadPlan | NativeHybridPlan, teacher_checksum: int
) -> dict:
    """Returns all that determines the student, up to rounding.

    A plan or a teacher that changed in place makes another run; other devices do not.
    """
    plain = {k: v for k, v in to_plain(config).items() if k not in _FREE_TO_CHANGE}
    plain["stages"] = [
        {k: v for k, v in stage.items() if k not in _FREE_TO_CHANGE} for stage in plain["stages"]
    ]
    record = {"config": plain, "teacher_checksum": teacher_checksum}
    return record | ({"head_plan": to_plain(plan)} if isinstance(plan, HeadPlan) else {})
