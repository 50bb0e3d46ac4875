"""Makes tiny models whose parameters have no special values, and a tokenizer for them."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models

from hydrahead_jax.config import FullAttention, Hydra, HydraChoices, ModelConfig, NativeHybrid
from hydrahead_jax.models import abstract_params, init_params, merge
from tests.toy_config import toy_config

TEACHER = toy_config(vocab=97, embed=32, mlp=48, head_dim=8, rope_theta=1e4, max_length=256)
TIED_AND_UNTIED = [TEACHER, dataclasses.replace(TEACHER, tied_embeddings=False)]

CHOICES = {
    "default": {},
    "no fusion": {"fusion": "none"},
    "gated fusion": {"fusion": "gated", "neg_eigval": True},
    "no convolution": {"short_conv": False},
    "silu": {"conv_silu": True, "log_scale_base": 5.0, "log_scale_in_training": True},
    "shared projections": {"query_decomposition": False, "fusion": "gated"},
}


def hybrid(*fa_heads: tuple[int, ...], tied: bool = True, **choices) -> ModelConfig:
    """Returns a config with one HydraHead layer for each tuple of softmax heads."""
    mixers = tuple(Hydra(fa_heads=heads, choices=HydraChoices(**choices)) for heads in fa_heads)
    return dataclasses.replace(TEACHER, mixers=mixers, tied_embeddings=tied)


MIXED = hybrid((0, 3), (), (0, 1, 2, 3))
FROM_SCRATCH = {"value_silu": True, "output_norm": True, "qk_norm": False}
NATIVE_HYBRID = dataclasses.replace(
    TEACHER,
    mixers=(
        NativeHybrid(window=5, slots=6),
        NativeHybrid(window=None, slots=4),
        NativeHybrid(window=0, slots=3, gate_normaliser=2.0, output_norm=True),
        NativeHybrid(window=40, slots=2, sinks=False, **FROM_SCRATCH),
    ),
)
HYBRIDS = {
    name: hybrid((0, 3), (), (0, 1, 2, 3), tied=name != "silu", **choices)
    for name, choices in CHOICES.items()
} | {
    "with full attention": dataclasses.replace(TEACHER, mixers=(FullAttention(), MIXED.mixers[0])),
    "native hybrid": NATIVE_HYBRID,
    "native hybrid heads": hybrid(
        (0,), (), fusion="gated", native_hybrid=NativeHybrid(window=5, slots=6)
    ),
    "native hybrid heads, shared projections": hybrid(
        (0, 3), query_decomposition=False, native_hybrid=NativeHybrid(window=0, slots=3)
    ),
}


def random_params(config: ModelConfig, seed: int = 0, noise: float = 0.1) -> dict:
    """Returns initial parameters with noise on all of them."""
    leaves, tree = jax.tree.flatten(init_params(config, jax.random.key(seed)))
    random = np.random.default_rng(seed)
    noisy = [leaf + noise * random.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in noisy])


def counted_params(config: ModelConfig) -> dict:
    """Returns parameters 0, 1, 2, ... through the model, so that a wrong transpose shows."""
    leaves, tree = jax.tree.flatten(abstract_params(config))
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    counted = [
        np.arange(start, start + leaf.size, dtype=np.float32).reshape(leaf.shape)
        for start, leaf in zip(starts, leaves, strict=False)
    ]
    return jax.tree.unflatten(tree, counted)


def random_tokens(config: ModelConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(config.vocab, size=(batch, length), dtype=np.int32)


def logits(config: ModelConfig, params: dict, tokens_BT, segment_ids_BT=None, training=False):
    """Returns the logits of the complete sequence."""

    @jax.jit
    def forward(params, tokens_BT, segment_ids_BT):
        model = merge(config, params)
        output = model(tokens_BT, segment_ids_BT=segment_ids_BT, training=training)
        return model.logits(output.hidden_BTD)

    return np.asarray(forward(params, tokens_BT, segment_ids_BT))


def write_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer of 97 words, the last of which ends a text."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {f"w{i}": i for i in range(96)} | {"<end>": 96}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def same_tree(actual: dict, expected: dict) -> bool:
    """Returns whether all keys, dtypes and numbers are equal."""
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        return False
    same = lambda a, b: a.dtype == b.dtype and bool((np.asarray(a) == np.asarray(b)).all())
    return jax.tree.all(jax.tree.map(same, actual, expected))
