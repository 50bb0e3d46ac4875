"""Converts Qwen3-0.6B to a 7:1 hybrid, with the paper's default token budget.

Command:  python -m train transfer configs/qwen3_0p6b_7to1.py
Needs:    Qwen/Qwen3-0.6B in models/qwen3-0.6b; data/fineweb-edu-prepared from `python -m train
          prepare`; runs/qwen3_0p6b_7to1_select/head_plan.json from `python -m train select`
Hardware: v6e:4x4, not run yet; hours at the least are in docs/planning.md.
Expected: no published figure for this size and ratio.
"""

from configs import halo
from train.commands.transfer import TransferConfig

MACHINE = halo.MACHINES["0.6b"]


def config() -> TransferConfig:
    return halo.transfer("0.6b", "7:1", MACHINE)
