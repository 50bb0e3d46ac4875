"""Converts Qwen3-1.7B to a 3:1 hybrid on one H200.

Command:  python -m train transfer configs/qwen3_1p7b_3to1_h200.py
Needs:    as configs/qwen3_1p7b_3to1.py; XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
Hardware: one H200, not run yet; hours at the least are in docs/planning.md.
Expected: as configs/qwen3_1p7b_3to1.py, whose steps it computes.
"""

from configs import halo
from train.commands.transfer import TransferConfig

MACHINE = halo.ONE_H200


def config() -> TransferConfig:
    return halo.transfer("1.7b", "3:1", MACHINE, name="_h200")
