"""Repeats the demo's comparison over three teachers and five random draws each: `make evidence`.

Command:  python -m train evidence configs/evidence.py
Hardware: 2 CPU cores, about two hours, of which the two further teachers take an eighth.
Expected: see the table in README.md.

The table is of the training length. evidence.json has two and four times that as well, and 7:1:
this teacher is too easy to tell 3:1 from 7:1.
"""

import dataclasses

from configs import demo, tiny_teacher
from configs.tiny_transfer import LENGTH, stages
from train.evidence.comparison import Student
from train.evidence.evidence import EvidenceConfig


def config() -> EvidenceConfig:
    comparison = demo.config().comparison
    return EvidenceConfig(
        out="runs/evidence",
        comparison=dataclasses.replace(
            comparison,
            students=(
                *comparison.students,
                Student(name="global-interp-7:1", strategy="global-interp-C", ratio="7:1"),
            ),
            selection=dataclasses.replace(comparison.selection, pairs=8, compare_attribution=True),
            transfer=dataclasses.replace(comparison.transfer, stages=stages()),
            evaluation=dataclasses.replace(
                comparison.evaluation, lengths=(LENGTH, 2 * LENGTH, 4 * LENGTH), batch=32
            ),
        ),
        random_draws=(0, 1, 2, 3, 4),
        pretrain=tiny_teacher.config(),
        teacher_seeds=(100, 200),
    )
