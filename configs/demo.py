"""Runs the complete conversion on one machine: `make demo`.

Command:  python -m train demo configs/demo.py
Hardware: 2 CPU cores, 3 to 4 minutes, much of it compiling.
Expected: global-interp keeps retrieval, random heads that miss every receiver lose it.

One student and one control, at the training length: configs/evidence.py has more of both.
"""

from configs.tiny_transfer import LENGTH, TEACHER, stages
from hydrahead_jax.evals import EvalSettings
from hydrahead_jax.selection import SelectionSettings
from hydrahead_jax.selection.checks.knockout import KnockOutSettings
from train.commands.transfer import TransferConfig
from train.evidence.comparison import ComparisonConfig, Student
from train.evidence.demo import DemoConfig


def config() -> DemoConfig:
    return DemoConfig(
        comparison=ComparisonConfig(
            teacher=TEACHER,
            out="runs/demo",
            students=(
                Student(name="global-interp-3:1", strategy="global-interp-C", ratio="3:1"),
                Student(
                    name="random-without-receivers-3:1",
                    strategy="random-without-receivers",
                    ratio="3:1",
                ),
            ),
            selection=SelectionSettings(
                pairs=6, length=LENGTH, total=False, compare_attribution=False
            ),
            transfer=TransferConfig(
                run="",
                teacher=TEACHER,
                head_plan="",
                stages=stages(align=50, distill=50, finetune=5),
            ),
            evaluation=EvalSettings(lengths=(LENGTH,), documents=64, batch=64),
        ),
        knock_out=KnockOutSettings(counts=(0, 2, 4, 8, 32), draws=2, documents=32, batch=32),
    )
