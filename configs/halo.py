"""Defines what the transfers of Qwen3 share; `python -m train plan` accepts their meshes.

The stages take 0.3, 1.0 and 1.0 billion tokens. Learning rates, batch sizes and steps are those of
HALO (arXiv 2601.22156), which the method extends.
"""

import dataclasses

from hydrahead_jax.sharding import MeshConfig
from train.commands.transfer import TransferConfig
from train.data.batches import DataConfig
from train.data.prepared.folder import PreparedText
from train.stage.optimizer import AdamW
from train.stage.stage import MIXERS, Stage

LONG = 512 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Says how a stage is laid out; fields as in `Stage`."""

    mesh: MeshConfig
    microbatches: int = 1
    remat: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Says which machine a transfer is for, and how its stages are laid out there.

    Attributes:
      target: name of the machine for `python -m train plan`.
      finetune: layout of the last stage.
      align: layout of the first stage; None where a transfer has no such stage.
      distill: layout of the second stage, likewise.
    """

    target: str
    finetune: Fit
    align: Fit | None = None
    distill: Fit | None = None


# Beyond fsdp=32 the TPU's compiler gathers narrow shares by all-reduces, which send twice as much.
# Batches of 32 and 96 rows of 512 tokens are small for a pod: beyond 32 devices each row is cut.
MACHINES = {
    "0.6b": Machine(
        target="v6e:4x4",
        align=Fit(mesh=MeshConfig(fsdp=16)),
        distill=Fit(mesh=MeshConfig(fsdp=16)),
        finetune=Fit(mesh=MeshConfig(fsdp=16), microbatches=8, remat="kernels"),
    ),
    "1.7b": Machine(
        target="v5p:4x4x4",
        align=Fit(mesh=MeshConfig(fsdp=32, context=2)),
        distill=Fit(mesh=MeshConfig(fsdp=32, context=2)),
        finetune=Fit(mesh=MeshConfig(data=2, fsdp=32), microbatches=2, remat="kernels"),
    ),
    "4b": Machine(
        target="v5p:4x4x4",
        align=Fit(mesh=MeshConfig(fsdp=32, context=2)),
        distill=Fit(mesh=MeshConfig(fsdp=32, context=2)),
        finetune=Fit(mesh=MeshConfig(data=2, fsdp=32), microbatches=2, remat="kernels"),
    ),
    "8b": Machine(
        target="v5p:8x8x8",
        align=Fit(mesh=MeshConfig(fsdp=32, context=16)),
        distill=Fit(mesh=MeshConfig(fsdp=32, context=16)),
        finetune=Fit(mesh=MeshConfig(data=4, fsdp=32, context=4), remat="kernels"),
    ),
}

ONE_H200 = Machine(
    target="h200",
    align=Fit(mesh=MeshConfig()),
    distill=Fit(mesh=MeshConfig(), microbatches=6, remat="kernels"),
    finetune=Fit(mesh=MeshConfig(), microbatches=128, remat="kernels"),
)
LONG_CONTEXT = Machine(
    target="v5p:8x8x8",
    align=Fit(mesh=MeshConfig(fsdp=32, context=16)),
    distill=Fit(mesh=MeshConfig(fsdp=32, context=16)),
    finetune=Fit(mesh=MeshConfig(fsdp=4, context=128), remat="kernels"),
)


def transfer(
    size: str, ratio: str, machine: Machine | None = None, *, length: int = 16_384, name: str = ""
) -> TransferConfig:
    """Describes the three stages for a Qwen3 of some size.

    Args:
      size: size of the teacher, such as "1.7b".
      ratio: delta-rule heads to softmax heads.
      machine: by default the one of that size above.
      length: length of the last stage's rows; a batch has the same number of tokens at any length.
      name: text added to the name of the run.
    """
    machine = machine or MACHINES[size]
    run = f"qwen3_{size.replace('.', 'p')}_{ratio.replace(':', 'to')}"
    return TransferConfig(
        run=f"runs/{run}{name}",
        teacher=f"models/qwen3-{size}",
        head_plan=f"runs/{run}_select/head_plan.json",
        teacher_size=size,
        ratio=ratio,
        stages=(
            Stage(
                name="align",
                loss="align",
                trainable=MIXERS,
                steps=20_000,
                data=rows(32, 512),
                optim=AdamW(learning_rate=1e-3, end_fraction=0.01),
                **common(machine.align),
            ),
            Stage(
                name="distill",
                loss="distill",
                steps=20_000,
                data=rows(96, 512),
                optim=AdamW(learning_rate=1e-4, end_fraction=0.1),
                **common(machine.distill),
            ),
            Stage(
                name="finetune",
                loss="next_token",
                steps=500,
                data=rows(128 * 16_384 // length, length),
                optim=AdamW(learning_rate=1e-5, schedule="constant"),
                **common(machine.finetune),
            ),
        ),
    )


def rows(batch: int, length: int) -> DataConfig:
    """Returns the data of a stage: FineWeb-Edu, as `python -m train prepare` wrote it."""
    text = PreparedText(folder="data/fineweb-edu-prepared")
    return DataConfig(length=length, batch=batch, prepared=(text,))


def common(fit: Fit) -> dict:
    """Returns the fields of a stage that say how it is laid out and how often it is logged."""
    return {
        "mesh": fit.mesh,
        "microbatches": fit.microbatches,
        "remat": fit.remat,
        "scan_layers": True,
        "log_every": 20,
        "checkpoint_every": 500,
    }
