"""Trains the small teacher in configs/assets/tiny_teacher.

Command:  python -m train pretrain configs/tiny_teacher.py
Hardware: one x86-64 core, 7 minutes; 15 where the machine is shared.
Expected: niah_single 1.00 and niah_multikey (8 needles) 0.99 or more at 256 tokens.

32 heads in 4 layers. Documents are the standard library's own sources with needles in them: first
short ones, where the retrieval circuit forms, then ones of the full length.
"""

from hydrahead_jax.config import FullAttention, ModelConfig
from hydrahead_jax.evals import EvalSettings
from train.commands.pretrain import PretrainConfig
from train.data.batches import DataConfig, NeedleData
from train.stage.optimizer import Muon
from train.stage.stage import Stage

LENGTH = 256


def config() -> PretrainConfig:
    first, then = Muon(end_fraction=0.3), Muon(learning_rate=0.01, adam_learning_rate=1.5e-3)
    return PretrainConfig(
        run="runs/tiny_teacher",
        out="configs/assets/tiny_teacher",
        model=ModelConfig(
            vocab=512,
            embed=160,
            mlp=384,
            query_heads=8,
            kv_heads=4,
            head_dim=32,
            mixers=(FullAttention(),) * 4,
            rope_theta=1e4,
            max_length=LENGTH,
        ),
        keys=32,
        values=32,
        stages=(
            _stage("short", steps=1000, length=64, batch=16, needles=(3, 6), optim=first),
            _stage("long", steps=400, length=LENGTH, batch=8, needles=(1, 12), optim=then),
        ),
        evaluation=EvalSettings(lengths=(LENGTH,), documents=128),
    )


def _stage(
    name: str, *, steps: int, length: int, batch: int, needles: tuple[int, int], optim: Muon
) -> Stage:
    return Stage(
        name=name,
        loss="next_token",
        steps=steps,
        optim=optim,
        data=DataConfig(
            length=length,
            batch=batch,
            needles=NeedleData(
                share=1.0, lengths=(length, length), needles=needles, queries_per_needle=2
            ),
            text_weight=0.1,
            answer_weight=1.0,
        ),
    )
