"""Qwen3-1.7B to a 3:1 hybrid, with the paper's default token budget.

Command:  python -m train transfer configs/qwen3_1p7b_3to1.py
Needs:    Qwen/Qwen3-1.7B in models/qwen3-1.7b; FineWeb-Edu as .jsonl in data/fineweb-edu;
          runs/qwen3_1p7b_select/head_plan.json from `python -m train select`
Hardware: not run yet.
Expected: RULER single at the native length 98.7 with global-interp (arXiv 2606.20097).

0.3, 1.0 and 1.0 billion tokens. Learning rates, batch sizes and steps are those of HALO
(arXiv 2601.22156), which the method extends.
"""

from hydrahead_jax.config import qwen3
from train.data import DataConfig
from train.optim import AdamW
from train.stage import MIXERS, Stage
from train.text import TextSource
from train.transfer import TransferConfig

TEACHER_MODEL = qwen3("1.7b")
TEXT = TextSource(folder="data/fineweb-edu")


def config() -> TransferConfig:
    every = {"log_every": 20, "checkpoint_every": 500}
    return TransferConfig(
        run="runs/qwen3_1p7b_3to1",
        teacher="models/qwen3-1.7b",
        head_plan="runs/qwen3_1p7b_select/head_plan.json",
        stages=(
            Stage(
                name="align",
                loss="align",
                trainable=MIXERS,
                steps=20_000,
                data=DataConfig(length=512, batch=32, text=TEXT),
                optim=AdamW(learning_rate=1e-3, end_fraction=0.01),
                **every,
            ),
            Stage(
                name="distill",
                loss="distill",
                steps=20_000,
                data=DataConfig(length=512, batch=96, text=TEXT),
                optim=AdamW(learning_rate=1e-4, end_fraction=0.1),
                **every,
            ),
            Stage(
                name="finetune",
                loss="next_token",
                steps=500,
                data=DataConfig(length=16_384, batch=128, text=TEXT),
                optim=AdamW(learning_rate=1e-5, schedule="constant"),
                **every,
            ),
        ),
    )
