"""Compares native hybrid attention with others at small scale: `make native-hybrid-evidence`.

Command:  python -m train evidence configs/native_hybrid_evidence.py
Hardware: 2 CPU cores.
Expected: see the tables in docs/native_hybrid.md.

Every model that learns from scratch has two layers: one that sees a token and the one before it,
in place of zoology's short convolution, and the compared one. It lets a model read what follows a
key. Steps and learning rate were chosen with the softmax model alone. States of the window, the
slots and the delta rule are about as large as those of window and slots together.
"""

import dataclasses

from configs import demo
from hydrahead_jax.config import FullAttention, Hydra, HydraChoices, ModelConfig, NativeHybrid
from hydrahead_jax.evals.mqar import MqarSymbols
from hydrahead_jax.layer_plan import NativeHybridPlan
from train.commands.pretrain import Scales
from train.data.batches import DataConfig
from train.data.mqar import MqarData
from train.evidence.comparison import ComparisonConfig, Student
from train.evidence.recall import RecallConfig
from train.evidence.recall_model import Variant
from train.evidence.recall_task import RecallTask
from train.stage.optimizer import Muon
from train.stage.stage import Stage

OUT = "runs/native_hybrid_evidence"
SEEDS = (0, 1, 2)
MQAR = MqarSymbols(keys=16, values=16)
NEEDLES = MqarSymbols(keys=16, values=16, fillers=8, needles=True)
LENGTH = 64
LENGTHS = (LENGTH, 2 * LENGTH, 4 * LENGTH)


def variants() -> tuple[Variant, ...]:
    """Returns the compared layers.

    Gates of a normaliser without end never forget and never write: what is left is the window, and
    one key of logit 0. The layer before does what a convolution of the delta rule would do.
    """
    only_window = lambda window: NativeHybrid(window=window, slots=1, gate_normaliser=1e9)
    delta = HydraChoices(short_conv=False)
    return (
        Variant(name="softmax", mixer=FullAttention()),
        Variant(name="window and slots", mixer=NativeHybrid(window=8, slots=8)),
        Variant(name="window only", mixer=only_window(24)),
        Variant(name="slots only", mixer=NativeHybrid(window=0, slots=12)),
        Variant(name="delta rule", mixer=Hydra(fa_heads=(), choices=delta)),
    )


def mqar() -> RecallTask:
    """Returns associative recall: rows that are short first, and then four times as many pairs."""
    stage = lambda name, **size: _stage(name, MQAR, steps=200, **size)
    return RecallTask(
        name="mqar",
        model=_model(MQAR),
        stages=(
            stage("short", length=LENGTH // 2, batch=32, pairs=(2, 8)),
            stage("long", length=LENGTH, batch=16, pairs=(4, 16)),
        ),
        lengths=LENGTHS,
        counts=(4, 8, 16),
    )


def needles() -> RecallTask:
    """Returns needles among filler: one answer a row, so that there are more and shorter rows."""
    stage = lambda name, **size: _stage(name, NEEDLES, steps=200, **size)
    return RecallTask(
        name="needles",
        model=_model(NEEDLES),
        stages=(
            stage("short", length=LENGTH // 4, batch=64, pairs=(1, 4)),
            stage("long", length=LENGTH, batch=32, pairs=(1, 8)),
        ),
        lengths=LENGTHS,
        counts=(1, 4, 8),
        documents=256,
    )


def _model(symbols: MqarSymbols) -> ModelConfig:
    return ModelConfig(
        vocab=symbols.vocab,
        embed=64,
        mlp=64,
        query_heads=2,
        kv_heads=2,
        head_dim=32,
        mixers=(
            NativeHybrid(window=2, slots=1, gate_normaliser=1e9),
            FullAttention(),
        ),
        rope_theta=1e4,
        max_length=LENGTH,
    )


def _stage(
    name: str,
    symbols: MqarSymbols,
    *,
    steps: int,
    length: int,
    batch: int,
    pairs: tuple[int, int],
) -> Stage:
    return Stage(
        name=name,
        loss="next_token",
        steps=steps,
        optim=Muon(learning_rate=0.05, adam_learning_rate=7.5e-3, end_fraction=0.3),
        data=DataConfig(
            length=length,
            batch=batch,
            mqar=MqarData(pairs=pairs, symbols=symbols),
            text_weight=0.0,
            answer_weight=1.0,
        ),
        log_every=25,
        checkpoint_every=200,
    )


def conversion() -> ComparisonConfig:
    """Returns the demo's conversion with plans whose caches have equally many bytes.

    One softmax head in each layer keeps four KV heads, as one global layer does. Six of the seven
    receivers are in layer 2; the last layer is the one that a plan takes by default.

    One seed only, for time.
    """
    nha = lambda layer: NativeHybridPlan(window=32, slots=16, global_layers=(layer,))
    kinds = {
        "hydra-7:1": {"ratio": "7:1"},
        "nha-global-2": {"native_hybrid": nha(2)},
        "nha-global-3": {"native_hybrid": nha(3)},
    }
    return dataclasses.replace(
        demo.config().comparison,
        out=f"{OUT}/conversion",
        students=tuple(
            Student(name=f"{name} seed {seed}", training_seed=seed, **kind)
            for seed in SEEDS[:1]
            for name, kind in kinds.items()
        ),
    )


def config() -> RecallConfig:
    return RecallConfig(
        out=OUT,
        tasks=(mqar(), needles()),
        variants=variants(),
        seeds=SEEDS,
        scales=Scales(),
        windows=(0, 2, 4, 8, 16, 32, 64),
        conversion=conversion(),
    )
