"""The demo's comparison over three teachers and five random draws each: `make evidence`.

Command:  python -m train evidence configs/evidence.py
Hardware: 2 CPU cores, about an hour and a half.
Expected: see the table in README.md.
"""

import dataclasses

from configs import demo, tiny_teacher
from train.evidence import EvidenceConfig


def config() -> EvidenceConfig:
    comparison = demo.config().comparison
    single_draws = ("global-random-3:1",)
    return EvidenceConfig(
        out="runs/evidence",
        comparison=dataclasses.replace(
            comparison,
            students=tuple(s for s in comparison.students if s.name not in single_draws),
        ),
        random_draws=(0, 1, 2, 3, 4),
        pretrain=tiny_teacher.config(),
        teacher_seeds=(100, 200),
    )
