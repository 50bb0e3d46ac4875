"""Trains native hybrid attention of 340 million parameters from scratch.

Command:  python -m train pretrain configs/nha_340m.py
Needs:    data/slimpajama-sample, text for the tokenizer and the evaluation; and
          data/slimpajama-prepared from `python -m train prepare` with the tokenizer that the
          command has written to runs/nha_340m/tokenizer when it asks for that folder
Hardware: v5p:4x4x4, not run yet; `python -m train plan` says what it takes.
Expected: not known to us for this size; of 1.3 billion parameters on 100 billion tokens the paper
          reports 52.9 points in common sense, 46.4 in recall, perplexity 16.2 on WikiText.

The published recipe (arXiv 2510.07019 and its code): rows of 2048 tokens, 524,288 tokens a step,
30,720 steps, which are 16.1 billion tokens of SlimPajama, learning rate 3e-4 after 1,024 steps of
warm-up, window 32, 64 slots. Layers, width and heads of the 340M model, the rest of its optimizer,
and which of its layers are global are not known to us: 24 layers of width 1024 as in other models
of this size, one layer in eight global.

The mixer is that of the paper's models from scratch: SiLU on values and on heads, one norm over all
heads before the output projection, no QK norm. Theirs start from a standard deviation of 0.02, here
only the embedding does.
"""

from configs import halo
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.evals import EvalSettings
from hydrahead_jax.layer_plan import NativeHybridPlan
from hydrahead_jax.sharding import MeshConfig
from train.commands.pretrain import PretrainConfig, Scales, Target
from train.data.batches import DataConfig
from train.data.prepared.folder import PreparedText
from train.data.text import TextSource
from train.stage.optimizer import AdamW
from train.stage.stage import Stage

LENGTH = 2048
LAYERS = 24
MACHINE = halo.Machine(
    target="v5p:4x4x4", finetune=halo.Fit(mesh=MeshConfig(data=2, fsdp=32), remat="kernels")
)


def config() -> PretrainConfig:
    sample = TextSource(folder="data/slimpajama-sample")
    return PretrainConfig(
        run="runs/nha_340m",
        out="models/nha-340m",
        model=ModelConfig(
            vocab=32_000,
            embed=1024,
            mlp=2816,
            query_heads=8,
            kv_heads=8,
            head_dim=128,
            mixers=NativeHybridPlan(
                window=32,
                slots=64,
                global_every=8,
                value_silu=True,
                output_norm=True,
                qk_norm=False,
            ).mixers(LAYERS),
            rope_theta=1e4,
            tied_embeddings=True,
            max_length=LENGTH,
        ),
        keys=32,
        values=32,
        text=sample,
        evaluation_text=sample,
        scales=Scales(embed_std=0.02, output=1.0, qk_gain=1.0),
        stages=(
            Stage(
                name="pretrain",
                loss="next_token",
                steps=30_720,
                data=DataConfig(
                    length=LENGTH,
                    batch=256,
                    prepared=(PreparedText(folder="data/slimpajama-prepared"),),
                ),
                optim=AdamW(learning_rate=3e-4, warmup_steps=1024),
                **halo.common(MACHINE.finetune),
            ),
        ),
        evaluation=EvalSettings(lengths=(LENGTH // 2, LENGTH), documents=64),
        target=Target(niah_single=0.0, niah_multikey=0.0),
        attempts=1,
    )
