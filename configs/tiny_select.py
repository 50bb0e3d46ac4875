"""Which heads of the tiny teacher stay softmax.

Command:  python -m train select configs/tiny_select.py
Hardware: 2 CPU cores, about a minute.
Expected: a plan of 8 of 32 heads with every receiver among them.
"""

from configs.tiny_teacher import LENGTH
from hydrahead_jax.selection import SelectionSettings
from train.select_config import SelectConfig


def config() -> SelectConfig:
    return SelectConfig(
        run="runs/tiny_select",
        teacher="configs/assets/tiny_teacher",
        settings=SelectionSettings(length=LENGTH),
    )
