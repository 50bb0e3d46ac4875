"""Computes what a stage takes on a target: memory, FLOP, bytes sent, and least time."""

import dataclasses

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.sharding import MeshConfig
from train.plan.compile import Arguments, Compiled
from train.plan.target import Target
from train.stage.flops import StepFlops, step_flops
from train.stage.stage import Stage

GIB = 2**30
_SECONDS_A_DAY = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory(Arguments):
    """Counts bytes on one device, those of the arguments and others.

    Attributes:
      gradients: float32, of the trained parameters.
      activations: the other temporaries at their peak: what the forward pass saves for the backward
        pass, gathered parameters, and the work space of both; None where it is not known.
      capacity: bytes that a program can use.
    """

    gradients: int
    activations: int | None
    capacity: float

    @property
    def total(self) -> int:
        """Returns the sum; activations are left out where they are not known."""
        parts = dataclasses.asdict(self)
        return sum(parts[name] or 0 for name in parts if name != "capacity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Holds the plan of one stage on one target.

    Attributes:
      stage: name of the stage.
      mesh: mesh as text, with the order of tokens where the context axis is larger than one.
      devices: devices that the mesh takes, of those of the target.
      microbatches: parts of a batch.
      remat: what is saved for the backward pass, see `Stage`.
      refusal: why there is no plan, in one sentence; everything below is then None.
      memory: see `Memory`.
      fits: whether the stage fits the memory.
      advice: what to change where it does not fit.
      flops: FLOP that the model needs for a step, on all devices.
      flops_at_least: FLOP that matrix units must do for it.
      flops_by_kind: parts of `flops`, by kind of work.
      sent: bytes that a device sends in a step, by kind of collective.
      uncounted_loops: loops that the bytes count as running once.
      compute_s: least seconds of a step for computing.
      memory_s: least seconds of a step for reading and writing memory.
      network_s: least seconds of a step for the network.
      step_s: the largest of the three.
      tokens_a_day: tokens trained in a day at `step_s`.
      hours: hours of all steps at `step_s`.
      trace_s: seconds that tracing took here.
      compile_s: seconds that compiling took here.
    """

    stage: str
    mesh: str
    devices: int | None = None
    microbatches: int = 1
    remat: str = "none"
    refusal: str | None = None
    memory: Memory | None = None
    fits: bool | None = None
    advice: str | None = None
    flops: float | None = None
    flops_at_least: float | None = None
    flops_by_kind: dict[str, float] | None = None
    sent: dict[str, float] | None = None
    uncounted_loops: int | None = None
    compute_s: float | None = None
    memory_s: float | None = None
    network_s: float | None = None
    step_s: float | None = None
    tokens_a_day: float | None = None
    hours: float | None = None
    trace_s: float | None = None
    compile_s: float | None = None


def refused(stage: Stage, mesh: MeshConfig, sentence: str) -> StagePlan:
    """Returns the plan of a stage that cannot be compiled."""
    return StagePlan(**_named(stage, mesh), refusal=sentence)


def stage_plan(
    stage: Stage,
    mesh: MeshConfig,
    target: Target,
    student: ModelConfig,
    teacher: ModelConfig | None,
    compiled: Compiled,
) -> StagePlan:
    """Combines the figures of the compiler with those of the shapes."""
    memory = _memory(target, compiled)
    flops = step_flops(stage, student, teacher)
    plan = StagePlan(
        **_named(stage, mesh),
        devices=compiled.devices,
        memory=memory,
        fits=not compiled.refusal and memory.total <= memory.capacity,
        flops=flops.model,
        flops_at_least=flops.at_least,
        flops_by_kind=flops.parts,
        trace_s=compiled.trace_s,
        compile_s=compiled.compile_s,
    )
    if not plan.fits:
        plan = dataclasses.replace(plan, advice=_advice(stage, memory))
    if compiled.refusal:
        return plan
    return dataclasses.replace(plan, **_times(stage, target, flops, compiled))


def _named(stage: Stage, mesh: MeshConfig) -> dict:
    order = f", {mesh.order}" if mesh.context != 1 else ""
    return {
        "stage": stage.name,
        "mesh": mesh.text() + order,
        "microbatches": stage.microbatches,
        "remat": stage.remat,
    }


def _memory(target: Target, compiled: Compiled) -> Memory:
    known = compiled.arguments
    activations = compiled.temporaries
    if activations is not None:
        # Where a program did not fit, the compiler sometimes reports the bytes of all of it.
        activations = max(0, activations + compiled.results + compiled.padding - known.trained)
    return Memory(
        **dataclasses.asdict(known),
        gradients=known.trained,
        activations=activations,
        capacity=target.chip.memory,
    )


def _times(stage: Stage, target: Target, flops: StepFlops, compiled: Compiled) -> dict:
    """Returns lower bounds on the time of a step.

    Memory: every argument is read and every result written once, and what lives at the peak was
    written and read once. Network: see `Chip.network_s`.
    """
    chip, known = target.chip, compiled.arguments
    state = known.trained + known.optimizer
    touched = state * 2 + known.frozen + known.teacher + known.batch + 2 * compiled.temporaries
    floors = {
        "compute_s": chip.compute_s(flops.at_least / compiled.devices),
        "memory_s": chip.memory_s(float(touched)),
        "network_s": chip.network_s(sum(compiled.sent.values(), 0.0)),
    }
    step_s = max(floors.values())
    tokens = stage.data.batch * stage.data.length
    return {
        **floors,
        "step_s": step_s,
        "tokens_a_day": tokens / step_s * _SECONDS_A_DAY,
        "hours": stage.steps * step_s / 3600,
        "sent": compiled.sent,
        "uncounted_loops": compiled.uncounted_loops,
    }


def _advice(stage: Stage, memory: Memory) -> str:
    """Says how to make a stage smaller that does not fit, the most useful way first."""
    state = memory.total - (memory.activations or 0)
    if state > 0.8 * memory.capacity:
        return (
            f"parameters, optimizer and gradients alone take {state / GIB:.1f} GiB a device: "
            f"share them out further, with a larger fsdp or tensor"
        )
    ways = []
    if stage.remat != "full":
        ways.append('remat="kernels" or "full"' if stage.remat == "none" else 'remat="full"')
    ways += [f"microbatches={2 * stage.microbatches}", "a larger fsdp or context"]
    return "activations take the most: try " + ", ".join(ways)
