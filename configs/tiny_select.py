"""Chooses the heads of the tiny teacher that stay softmax.

Command:  python -m train select configs/tiny_select.py
Hardware: 2 CPU cores, four minutes.
Expected: a plan of 8 of 32 heads and a page, runs/tiny_select/report.html; retrieval is lost when
          the 6 best heads are knocked out, and mostly kept when 6 random ones are.
"""

from configs.tiny_teacher import LENGTH
from hydrahead_jax.selection import SelectionSettings
from hydrahead_jax.selection.checks.knockout import KnockOutSettings
from train.select.config import SelectConfig


def config() -> SelectConfig:
    return SelectConfig(
        run="runs/tiny_select",
        teacher="configs/assets/tiny_teacher",
        settings=SelectionSettings(length=LENGTH, pairs=24),
        knock_out=KnockOutSettings(counts=(0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)),
    )
