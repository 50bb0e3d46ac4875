"""Converts the tiny teacher to a 3:1 hybrid.

Command:  python -m train transfer configs/tiny_transfer.py
Needs:    runs/tiny_select/head_plan.json, from `python -m train select configs/tiny_select.py`
Hardware: 2 CPU cores, about 3 minutes.

Nine pieces of text in ten are plain: with needles in every row, any plan relearns retrieval and
the choice of heads does not show.
"""

from train.commands.transfer import TransferConfig
from train.data.batches import DataConfig, NeedleData
from train.stage.optimizer import AdamW
from train.stage.stage import MIXERS, Stage

TEACHER = "configs/assets/tiny_teacher"
LENGTH = 256


def config() -> TransferConfig:
    return TransferConfig(
        run="runs/tiny_transfer",
        teacher=TEACHER,
        head_plan="runs/tiny_select/head_plan.json",
        stages=stages(),
    )


def stages(*, align: int = 100, distill: int = 100, finetune: int = 20) -> tuple[Stage, ...]:
    """Returns the three stages at the small scale: align, distill, then train without teacher.

    Args:
      align: steps of the first stage.
      distill: steps of the second stage.
      finetune: steps of the third stage.
    """
    data = DataConfig(
        length=LENGTH,
        batch=4,
        needles=NeedleData(share=0.1, lengths=(LENGTH, LENGTH), needles=(1, 12)),
    )
    adam = lambda rate, **more: AdamW(learning_rate=rate, warmup_steps=10, **more)
    every = {"data": data, "log_every": 10, "checkpoint_every": 50}
    return (
        Stage(
            name="align",
            loss="align",
            trainable=MIXERS,
            steps=align,
            optim=adam(3e-3, end_fraction=0.1),
            **every,
        ),
        Stage(
            name="distill",
            loss="distill",
            steps=distill,
            optim=adam(1e-3, end_fraction=0.1),
            **every,
        ),
        Stage(
            name="finetune",
            loss="next_token",
            steps=finetune,
            optim=adam(1e-5, schedule="constant"),
            **every,
        ),
    )
