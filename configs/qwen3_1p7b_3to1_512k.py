"""Converts Qwen3-1.7B to a 3:1 hybrid whose last stage has rows of 512K tokens.

Command:  python -m train transfer configs/qwen3_1p7b_3to1_512k.py
Needs:    as configs/qwen3_1p7b_3to1.py, with long documents in the prepared text
Hardware: v5p:8x8x8, each row over 128 chips in zigzag order, not run yet; hours at
          the least are in docs/planning.md.
Expected: no published figure; the recipe stops at 16K.

A batch of the last stage has 4 rows, as many tokens as 128 rows of 16K.
"""

from configs import halo
from train.commands.transfer import TransferConfig

MACHINE = halo.LONG_CONTEXT


def config() -> TransferConfig:
    return halo.transfer("1.7b", "3:1", MACHINE, length=halo.LONG, name="_512k")
