"""Compiles a stage's real step with the real compiler, in a process of its own.

It compiles up to the point where memory and collectives are decided, and generates no code.
"""

import dataclasses
import math
import re
import time

import jax
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.precision import training_policy
from hydrahead_jax.sharding import MeshConfig, make_layout
from pallas_kernels.hardware.assigned import Assigned, compile_until_assigned
from pallas_kernels.hardware.collectives import traffic
from train.plan.target import Target
from train.stage.stage import Stage

_SIZES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDED = re.compile(r"(?:memory required for [\w ]+\(|Used )([\d.]+)([KMGT])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Describes one stage on one target; `precision` is that of the computation."""

    stage: Stage
    student: ModelConfig
    teacher: ModelConfig | None
    mesh: MeshConfig
    precision: str
    target: Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Counts the bytes of a step's arguments on one device, from shapes and shardings.

    Attributes:
      trained: float32 parameters that the stage trains.
      frozen: parameters that it leaves alone.
      optimizer: state of the optimizer.
      teacher: parameters of the teacher.
      batch: tokens of the batch.
    """

    trained: int
    frozen: int
    optimizer: int
    teacher: int
    batch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """Holds the compiler's figures for a step, on one device.

    Attributes:
      devices: devices that the mesh takes.
      arguments: bytes of the arguments by their shapes; together they are what a step starts with.
      padding: bytes that arguments take beyond their shapes.
      results: bytes of results that take no argument's place.
      temporaries: bytes at their peak; None where the program is too large and the compiler does
        not say how much it needs.
      sent: bytes sent, by kind of collective.
      uncounted_loops: loops in which collectives may run more often than counted.
      trace_s: seconds that tracing took.
      compile_s: seconds that compiling took.
      refusal: the compiler's words where the program does not fit the memory, else empty.
    """

    devices: int
    arguments: Arguments
    padding: int
    results: int
    temporaries: int | None
    sent: dict[str, float]
    uncounted_loops: int
    trace_s: float
    compile_s: float
    refusal: str = ""


def compile_stage(task: Task) -> Compiled:
    """Compiles for devices that need not exist here; call it in the target's environment."""
    from train.run.train_step import abstract_arguments, make_train_step

    jax.config.update("jax_enable_compilation_cache", False)
    # A layout even of one device, because it is not this machine's.
    layout = make_layout(task.mesh, task.target.devices())
    policy = training_policy("bfloat16" if task.precision == "auto" else task.precision)
    teacher = None if task.stage.loss == "next_token" else task.teacher
    what = (task.stage, task.student, teacher, policy, layout)
    began = time.monotonic()
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        arguments = abstract_arguments(*what)
        lowered = make_train_step(*what).lower(*arguments)
        traced = time.monotonic()
        known = {
            "devices": layout.mesh.size,
            "arguments": _by_shape(arguments),
            "trace_s": traced - began,
        }
        try:
            assigned = compile_until_assigned(lowered)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _too_large(str(error), time.monotonic() - traced, known)
    return _read(assigned, time.monotonic() - traced, known)


def _read(assigned: Assigned, seconds: float, known: dict) -> Compiled:
    sent = traffic(assigned.text)
    return Compiled(
        **known,
        padding=assigned.memory.arguments - sum(dataclasses.asdict(known["arguments"]).values()),
        results=assigned.memory.results,
        temporaries=assigned.memory.temporaries,
        sent=sent.sent(),
        uncounted_loops=sent.uncounted_loops,
        compile_s=seconds,
    )


def _too_large(words: str, seconds: float, known: dict) -> Compiled:
    return Compiled(
        **known,
        padding=0,
        results=0,
        temporaries=needed_bytes(words),
        sent={},
        uncounted_loops=0,
        compile_s=seconds,
        refusal=words.partition("\n")[0],
    )


def needed_bytes(words: str) -> int | None:
    """Returns the bytes that the compiler says a program needs; None where it does not say."""
    found = _NEEDED.search(words)
    return int(float(found[1]) * _SIZES[found[2]]) if found else None


def _by_shape(arguments: tuple) -> Arguments:
    state, frozen, teacher, batch = arguments
    return Arguments(
        trained=_bytes(state.trainable),
        frozen=_bytes(frozen),
        optimizer=_bytes(state.opt_state),
        teacher=_bytes(teacher),
        batch=_bytes(batch),
    )


def _bytes(tree) -> int:
    """Returns the bytes of a tree's shards on one device."""
    parts = [
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    ]
    return sum(parts)
