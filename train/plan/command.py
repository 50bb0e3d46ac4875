"""Runs `python -m train plan`: plans every stage of a config for machines that are elsewhere."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import check_target, write_json
from hydrahead_jax.local_path import local_path
from hydrahead_jax.sharding import MeshConfig
from pallas_kernels.hardware.isolated import IsolatedError, run_isolated
from pallas_kernels.report.provenance import provenance
from train.commands.pretrain import PretrainConfig
from train.commands.transfer import TransferConfig
from train.plan.compile import Task, compile_stage
from train.plan.models import Models, models_of
from train.plan.stage_plan import StagePlan, refused, stage_plan
from train.plan.table import NETWORK, terminal_table
from train.plan.target import Target, parse_target
from train.stage.mesh_checks import check_mesh
from train.stage.stage import Stage, check_stages

_SECONDS_BETWEEN_LINES = 30.0


def plan(
    config: TransferConfig | PretrainConfig,
    target: str,
    json_file: Path | None = None,
    *,
    alike: bool = False,
    say: Callable[[str], None] = print,
) -> list[StagePlan]:
    """Plans all stages, shows them and writes them as JSON.

    Args:
      config: config of a transfer, whose teacher and head plan need not exist, or of a pretraining.
      target: see `parse_target`.
      json_file: file for the figures; None writes none.
      alike: see `models_of`.
      say: takes a sentence for the user.

    Raises:
      UserError: the target is unknown, or the models are, or the file cannot be written.
    """
    if json_file is not None:
        check_target(json_file := local_path(json_file))
    place = parse_target(target)
    models = models_of(config, alike=alike)
    transfers = models.teacher is not None
    max_length = (models.teacher or models.student).max_length
    check_stages(config.stages, max_length, hybrid=transfers)
    count = device_count(place)
    for sentence in models.assumptions:
        say(f"assumed: {sentence}")
    plans = [plan_stage(config, stage, place, count, models, say) for stage in config.stages]
    console = Console()
    console.print(terminal_table(plans, f"{config.run} on {place.name}"))
    for found in plans:
        if found.refusal or found.advice:
            say(f"stage {found.stage!r}: {found.refusal or found.advice}")
    say(NETWORK)
    if json_file is not None:
        write_json(json_file, record(place, models, plans))
        say(f"wrote {json_file}")
    return plans


def device_count(target: Target) -> int:
    """Returns the number of devices of a target, as its compiler knows them.

    Raises:
      UserError: the compiler knows no such slice.
    """
    try:
        return run_isolated(_count, target, environment=target.environment())
    except IsolatedError as error:
        words = str(error).strip().splitlines()[-1].partition(": ")[2]
        raise UserError(
            f"the compiler refuses target {target.name!r}: {words}; choose another target"
        ) from error


def _count(target: Target) -> int:
    return len(target.devices())


def plan_stage(
    config: TransferConfig | PretrainConfig,
    stage: Stage,
    target: Target,
    devices: int,
    models: Models,
    say: Callable[[str], None],
) -> StagePlan:
    """Plans one stage; a mesh that does not fit gives a plan that says why."""
    mesh = stage.mesh or getattr(config, "mesh", MeshConfig())
    try:
        check_mesh(stage, mesh, devices, models.student, models.teacher)
    except UserError as error:
        return refused(stage, mesh, str(error))
    task = Task(
        stage=stage,
        student=models.student,
        teacher=models.teacher,
        mesh=mesh,
        precision=config.precision,
        target=target,
    )
    try:
        compiled = _watched(f"stage {stage.name!r} for {target.name}", task, say)
    except (NotImplementedError, IsolatedError) as error:
        last = str(error).strip().splitlines()[-1]
        return refused(stage, mesh, f"the compiler refuses this step: {last[:500]}")
    return stage_plan(stage, mesh, target, models.student, models.teacher, compiled)


def _watched(name: str, task: Task, say: Callable[[str], None]):
    """Runs `compile_stage` in its own process, and shows the user the time that passes."""
    began = time.monotonic()
    console = Console()
    environment = task.target.environment()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            run_isolated, compile_stage, task, environment=environment, timeout_s=86_400.0
        )
        if console.is_terminal:
            with console.status(f"{name}: tracing and compiling, this takes minutes") as status:
                while not concurrent.futures.wait([future], 1.0).done:
                    minutes, seconds = divmod(int(time.monotonic() - began), 60)
                    status.update(f"{name}: tracing and compiling, {minutes}:{seconds:02d}")
        else:
            while not concurrent.futures.wait([future], _SECONDS_BETWEEN_LINES).done:
                say(f"{name}: tracing and compiling, {time.monotonic() - began:.0f} s so far")
        return future.result()


def record(target: Target, models: Models, plans: list[StagePlan]) -> dict:
    """Returns all figures in a form that JSON can hold."""
    return {
        "target": target.name,
        "assumptions": models.assumptions,
        "made": provenance(),
        "stages": [dataclasses.asdict(found) for found in plans],
    }
