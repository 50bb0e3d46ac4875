"""What a stage takes on a target: memory against capacity, FLOP, bytes sent, and time at least."""

import dataclasses

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.sharding import MeshConfig
from train.plan.compile import Compiled
from train.plan.target import Target
from train.stage.flops import StepFlops, step_flops
from train.stage.stage import Stage

GIB = 2**30
_SECONDS_A_DAY = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    Attributes:
      trained: float32 parameters that the stage trains.
      frozen: those that it leaves alone.
      optimizer: its state.
      teacher: parameters of the teacher.
      batch: tokens.
      gradients: float32, of the trained parameters.
      activations: the other temporaries at their peak: what the forward pass keeps for the backward
        pass, gathered parameters, and the work space of both; None where it is not known.
      capacity: that a program can use.
    """

    trained: int
    frozen: int
    optimizer: int
    teacher: int
    batch: int
    gradients: int
    activations: int | None
    capacity: float

    @property
    def total(self) -> int:
        """Without activations where they are not known."""
        parts = dataclasses.asdict(self)
        return sum(parts[name] or 0 for name in parts if name != "capacity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage on one target.

    Attributes:
      mesh: as text.
      devices: that it takes, of those of the target.
      order: of tokens, where the context axis is larger than one.
      refusal: why there is no plan, in one sentence; everything below is then None.
      memory: see `Memory`.
      fits: the verdict.
      advice: what to change where it does not fit.
      flops: of a step on all devices, of the model.
      flops_at_least: that matrix units must do for it.
      flops_by_kind: of the model.
      sent: bytes that a device sends in a step, by kind of collective.
      uncounted_loops: that the bytes count as running once.
      compute_s, memory_s, network_s: least time for each in a step.
      step_s: the largest of the three.
      tokens_a_day: at `step_s`.
      hours: of all steps, at `step_s`.
      trace_s, compile_s: taken here.
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
    """The plan of a stage that cannot be compiled."""
    return StagePlan(**_named(stage, mesh), refusal=sentence)


def stage_plan(
    stage: Stage,
    mesh: MeshConfig,
    target: Target,
    student: ModelConfig,
    teacher: ModelConfig,
    compiled: Compiled,
) -> StagePlan:
    """Puts together what the compiler and the shapes say."""
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
        # The compiler's own figure for what did not fit is of the whole program at times.
        activations = max(0, activations + compiled.results + compiled.padding - known.trained)
    return Memory(
        **dataclasses.asdict(known),
        gradients=known.trained,
        activations=activations,
        capacity=target.chip.memory,
    )


def _times(stage: Stage, target: Target, flops: StepFlops, compiled: Compiled) -> dict:
    """Floors of a step.

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
    """What makes a stage that does not fit smaller, the most useful first."""
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
