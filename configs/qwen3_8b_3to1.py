"""Converts Qwen3-8B to a 3:1 hybrid, with the paper's default token budget.

Command:  python -m train transfer configs/qwen3_8b_3to1.py
Needs:    Qwen/Qwen3-8B in models/qwen3-8b; data/fineweb-edu-prepared from `python -m train
          prepare`; runs/qwen3_8b_3to1_select/head_plan.json from `python -m train select`
Hardware: v5p:8x8x8, not run yet; hours at the least are in docs/planning.md.
Expected: no published figure for this size and ratio.
"""

from configs import halo
from train.commands.transfer import TransferConfig

MACHINE = halo.MACHINES["8b"]


def config() -> TransferConfig:
    return halo.transfer("8b", "3:1", MACHINE)
