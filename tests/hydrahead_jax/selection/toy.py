"""Makes random models and random pairs, padded on both sides, to compare with definitions."""

import dataclasses

import jax
import numpy as np

from hydrahead_jax.config import FullAttention, Hydra, HydraChoices, ModelConfig, NativeHybrid
from hydrahead_jax.models import init_params
from hydrahead_jax.selection.probes.pairs import ProbePairs
from tests.toy_config import toy_config

FULL = toy_config(3, vocab=100, embed=32, mlp=48, head_dim=16, rope_theta=1e4)
CONFIGS = {
    "grouped": FULL,
    "one KV head each, own unembedding": dataclasses.replace(
        FULL, query_heads=3, kv_heads=3, tied_embeddings=False
    ),
    "hybrid": dataclasses.replace(
        FULL,
        mixers=(
            FullAttention(),
            Hydra(fa_heads=(0, 3), choices=HydraChoices(query_decomposition=False)),
            FullAttention(),
        ),
    ),
    "native hybrid": dataclasses.replace(
        FULL,
        mixers=(
            NativeHybrid(window=None, slots=3),
            NativeHybrid(window=None, value_silu=True, output_norm=True, qk_norm=False),
            NativeHybrid(window=4, slots=3),
        ),
    ),
}
LENGTH, SPAN = 40, 3
EARLY, LATE = 2, 21


def random_pairs(config: ModelConfig, first: int = LATE, batch: int = 5) -> ProbePairs:
    """Makes pairs that differ in many tokens from `first` on.

    One row is padded on the left, and one has a shorter answer.
    """
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(config.vocab, size=(batch, LENGTH)).astype(np.int32)
    corrupt_BT = tokens_BT.copy()
    corrupt_BT[:, first : first + 9] = rng.integers(config.vocab, size=(batch, 9))
    segment_ids_BT = np.ones_like(tokens_BT)
    segment_ids_BT[0, : first // 2] = 0
    segment_ids_BT[1, -1] = 0
    answer_BJ = tokens_BT[:, -SPAN:].copy()
    distractor_BJ = (answer_BJ + 7) % config.vocab
    answer_BJ[1, -1] = distractor_BJ[1, -1] = -1
    return ProbePairs(tokens_BT, corrupt_BT, segment_ids_BT, answer_BJ, distractor_BJ)


def random_params(config: ModelConfig, *, heads: float = 20.0, mlp: float = 1.0) -> dict:
    """Makes parameters; `heads` and `mlp` scale what those write to the residual stream."""
    params = init_params(config, jax.random.key(3))
    for layer in params["layers"].values():
        for branch in (layer["mixer"], layer["mixer"].get("fa"), layer["mixer"].get("gdn")):
            if branch is not None and "w_o_NHD" in branch:
                branch["w_o_NHD"] *= heads
        layer["mlp"]["w_down_FD"] *= mlp
    return params


def every_head(config: ModelConfig) -> list[tuple[int, int]]:
    return list(np.ndindex(config.layers, config.query_heads))
