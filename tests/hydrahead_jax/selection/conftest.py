"""Makes a teacher that retrieves by construction, with known heads, and its tokenizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import init_params
from hydrahead_jax.selection import select
from tests.toy_config import toy_config

WORDS, KEYS, VALUES = 16, 8, 32
VOCAB = WORDS + KEYS + VALUES
CONSTANT, PREVIOUS = VOCAB, VOCAB + 1
PREVIOUS_HEAD, RECEIVER = (0, 1), (1, 2)
BYSTANDERS = (0, 0), (1, 3)


@pytest.fixture(scope="session")
def planted_config() -> ModelConfig:
    sizes = {"vocab": VOCAB, "embed": 2 * VOCAB + 1, "mlp": 16, "head_dim": 128}
    return toy_config(**sizes, rope_theta=1e8, max_length=128)


@pytest.fixture(scope="session")
def planted_params(planted_config) -> dict:
    """Returns an induction circuit in otherwise small noise.

    Head (0, 1) writes down the token before. Head (1, 2) looks for the token that the present one
    came before, and copies it. Each has a bystander that attends as it does and writes next to
    nothing.
    """
    config = planted_config
    params = init_params(config, jax.random.key(0))
    params["w_embed_VD"] = jnp.eye(VOCAB, config.embed).at[:, CONSTANT].set(1.0)
    for layer in params["layers"].values():
        layer["mlp"]["w_down_FD"] *= 0.05
        layer["mixer"]["w_o_NHD"] *= 0.02
    tokens = np.arange(VOCAB)

    mixer, (_, head) = params["layers"][0]["mixer"], PREVIOUS_HEAD
    kv = config.kv_head(head)
    pairs = np.arange(16)
    turn = config.rope_theta ** (-2 * pairs / config.head_dim)
    _plant(mixer["qkv"], "w_q_DNH", head, (CONSTANT, pairs), 1.0)
    _plant(mixer["qkv"], "w_k_DKH", kv, (CONSTANT, pairs), np.cos(turn))
    mixer["qkv"]["w_k_DKH"] = (
        mixer["qkv"]["w_k_DKH"].at[CONSTANT, kv, pairs + config.head_dim // 2].set(np.sin(turn))
    )
    _plant(mixer["qkv"], "w_v_DKH", kv, (tokens, tokens), 1.0)
    mixer["qkv"]["q_norm_H"] *= 12.0
    mixer["w_o_NHD"] = (
        mixer["w_o_NHD"].at[head].set(0.0).at[head, tokens, PREVIOUS + tokens].set(0.13)
    )

    mixer, (_, head) = params["layers"][1]["mixer"], RECEIVER
    kv = config.kv_head(head)
    slow = np.concatenate([np.arange(36, 64), np.arange(100, 128)])
    _plant(mixer["qkv"], "w_q_DNH", head, (tokens, slow), 1.0)
    _plant(mixer["qkv"], "w_k_DKH", kv, (PREVIOUS + tokens, slow), 1.0)
    _plant(mixer["qkv"], "w_v_DKH", kv, (tokens, tokens), 1.0)
    mixer["qkv"]["q_norm_H"] *= 1.4
    mixer["w_o_NHD"] = mixer["w_o_NHD"].at[head].set(0.0).at[head, tokens, tokens].set(0.65)
    for (layer, bystander), (_, head) in zip(BYSTANDERS, (PREVIOUS_HEAD, RECEIVER), strict=True):
        qkv = params["layers"][layer]["mixer"]["qkv"]
        qkv["w_q_DNH"] = qkv["w_q_DNH"].at[:, bystander].set(qkv["w_q_DNH"][:, head])
    return params


def _plant(qkv: dict, name: str, head: int, at, value) -> None:
    qkv[name] = qkv[name].at[:, head].set(0.0).at[at[0], head, at[1]].set(value)


@pytest.fixture(scope="session")
def planted_tokenizer() -> Tokenizer:
    names = [
        *(f"word{i}" for i in range(WORDS)),
        *(f"<key_{i:02d}>" for i in range(KEYS)),
        *(f"<val_{i:02d}>" for i in range(VALUES)),
    ]
    return Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "word0"))


@pytest.fixture(scope="session")
def words() -> np.ndarray:
    """Returns a haystack."""
    return np.random.default_rng(1).integers(WORDS, size=4000)


@pytest.fixture(scope="session")
def scored(planted_config, planted_params, planted_tokenizer, words):
    """Returns a function that scores the planted teacher's heads."""
    return functools.partial(select, planted_config, planted_params, planted_tokenizer, words)
