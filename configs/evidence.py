"""The demo's comparison over three teachers and five random draws each: `make evidence`.

Command:  python -m train evidence configs/evidence.py
Hardware: 2 CPU cores, about an hour, of which the two further teachers take a quarter.
Expected: see the table in README.md.

Evaluated at the training length only, and at one ratio: this teacher is too easy to tell 3:1 from
7:1.
"""

import dataclasses

from configs import demo, tiny_teacher
from train.evidence import EvidenceConfig

STUDENTS = ("global-interp-3:1", "random-without-receivers-3:1")


def config() -> EvidenceConfig:
    comparison = demo.config().comparison
    evaluation = comparison.evaluation
    return EvidenceConfig(
        out="runs/evidence",
        comparison=dataclasses.replace(
            comparison,
            students=tuple(s for s in comparison.students if s.name in STUDENTS),
            evaluation=dataclasses.replace(evaluation, lengths=evaluation.lengths[:1]),
        ),
        random_draws=(0, 1, 2, 3, 4),
        pretrain=tiny_teacher.config(),
        teacher_seeds=(100, 200),
    )
