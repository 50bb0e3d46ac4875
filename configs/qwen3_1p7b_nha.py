"""Converts Qwen3-1.7B to native hybrid attention, by the recipe of its paper.

Command:  python -m train transfer configs/qwen3_1p7b_nha.py
Needs:    Qwen/Qwen3-1.7B in models/qwen3-1.7b; data/fineweb-edu-prepared from `python -m train
          prepare`
Hardware: v5p:4x4x4, not run yet; `python -m train plan` says what it takes.
Expected: not known for this model; NHA-Llama-3-8B, with 4 of 32 layers global, keeps 70.3 of 71.3
          points in common sense and 57.6 of 60.1 in recall (arXiv 2510.07019).

The last of every eight layers sees all tokens, the others 32 tokens and 64 slots. Everything but
the MLPs is trained on the next token alone: no teacher, 524,288 tokens a step, rows of 2048. The
published code takes 10,240 steps, 5.4 billion tokens, where the paper speaks of 10 billion. Its
optimizer beyond the learning rate is not known to us; warm-up, schedule and weight decay are the
project's.
"""

from configs import halo
from hydrahead_jax.layer_plan import NativeHybridPlan
from hydrahead_jax.sharding import MeshConfig
from train.commands.transfer import TransferConfig
from train.stage.optimizer import AdamW
from train.stage.stage import ALL_BUT_MLP, Stage

MACHINE = halo.Machine(
    target="v5p:4x4x4", finetune=halo.Fit(mesh=MeshConfig(data=2, fsdp=32), remat="kernels")
)


def config() -> TransferConfig:
    return TransferConfig(
        run="runs/qwen3_1p7b_nha",
        teacher="models/qwen3-1.7b",
        teacher_size="1.7b",
        native_hybrid=NativeHybridPlan(window=32, slots=64, global_every=8),
        stages=(
            Stage(
                name="finetune",
                loss="next_token",
                trainable=ALL_BUT_MLP,
                steps=10_240,
                data=halo.rows(256, 2048),
                optim=AdamW(learning_rate=3e-5),
                **halo.common(MACHINE.finetune),
            ),
        ),
    )
