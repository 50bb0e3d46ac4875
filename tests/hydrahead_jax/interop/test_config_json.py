"""Checks configs as JSON: exact both ways, and clear about what does not fit."""

import json

import pytest

from hydrahead_jax.config import qwen3
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import config_from_json, config_to_json
from tests.hydrahead_jax.interop import toy

MODELS = {"teacher": toy.TEACHER, "qwen3": qwen3("32b"), **toy.HYBRIDS}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_round_trip_through_text(config):
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 4}, "unknown field 'heads'"),
        ({"vocab": "97"}, "vocab='97' must be int"),
        ({"vocab": True}, "vocab=True must be int"),
        ({"rope_theta": "big"}, "rope_theta='big' must be a number"),
        ({"tied_embeddings": 1}, "tied_embeddings=1 must be bool"),
        ({"kv_heads": 3}, "4 query heads are not a multiple of 3 KV heads"),
        ({"mixers": None}, "'mixers' must be a list"),
        ({"mixers": [{"kind": "mamba"}]}, "mixer of layer 0: 'kind' must be one of"),
        ({"mixers": [{"kind": "hydra"}]}, "'fa_heads' must be a list of head numbers, not None"),
        ({"mixers": [{"kind": "hydra", "fa_heads": [9]}]}, "layer 0: fa_heads"),
        (
            {"mixers": [{"kind": "hydra", "fa_heads": [0], "choices": {"fusion": "sum"}}]},
            "mixer of layer 0: fusion='sum' must be one of scale, none, gated",
        ),
        (
            {"mixers": [{"kind": "hydra", "fa_heads": [0], "choices": {"conv": True}}]},
            "mixer of layer 0: unknown field 'conv'",
        ),
        ({"mixers": [{"kind": "full_attention", "fa_heads": [0]}]}, "unknown field 'fa_heads'"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        config_from_json({**config_to_json(toy.TEACHER), **change})


def test_missing_field_is_named():
    fields = config_to_json(toy.TEACHER)
    del fields["embed"]
    with pytest.raises(UserError, match="model config: embed missing"):
        config_from_json(fields)
