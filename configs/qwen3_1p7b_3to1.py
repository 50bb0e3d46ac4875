"""Converts Qwen3-1.7B to a 3:1 hybrid, with the paper's default token budget.

Command:  python -m train transfer configs/qwen3_1p7b_3to1.py
Needs:    Qwen/Qwen3-1.7B in models/qwen3-1.7b; data/fineweb-edu-prepared from `python -m train
          prepare`; runs/qwen3_1p7b_3to1_select/head_plan.json from `python -m train select`
Hardware: v5p:4x4x4, not run yet; hours at the least are in docs/planning.md.
Expected: RULER single at the native length 98.7 with global-interp (arXiv 2606.20097).
"""

from configs import halo
from train.commands.transfer import TransferConfig

MACHINE = halo.MACHINES["1.7b"]


def config() -> TransferConfig:
    return halo.transfer("1.7b", "3:1", MACHINE)
