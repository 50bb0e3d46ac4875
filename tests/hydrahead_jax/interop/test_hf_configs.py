"""Reads config.json as others write it, or names what cannot be computed."""

import math

import pytest

from hydrahead_jax.interop import read_config
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.hf_folder import ABSENT, edit_config, refusal

SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "num_hidden_layers",
]
IMPOSSIBLE = [0, -1, 1.5, 32.0, "32", None, True, [32], {"a": 1}, 10**12, math.nan, math.inf]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["plain", "hybrid"])
def test_impossible_sizes_are_named(copied, kind, name):
    path = copied(kind)
    for value in IMPOSSIBLE:
        edit_config(path, **{name: value})
        sentence = refusal(path, read_config)
        assert sentence.startswith(f"{path / 'config.json'}: ") and name in sentence


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize(
    "value", [0, -1e-6, "1e-6", None, True, [1.0], math.nan, math.inf, 10**400]
)
def test_impossible_numbers_are_named(copied, name, value):
    path = copied("plain")
    edit_config(path, **{name: value})
    assert name in refusal(path, read_config)


LONG = "x" * 5000
OTHERS = [
    ({"model_type": "llama"}, "model_type is 'llama'"),
    ({"attention_bias": True}, "not supported: attention_bias"),
    ({"use_sliding_window": True}, "not supported: use_sliding_window"),
    ({"quantization_config": {"bits": 4}}, "not supported: quantization_config"),
    ({"rope_theta": ABSENT}, "rope_theta missing"),
    ({"hidden_size": ABSENT, "head_dim": ABSENT}, "hidden_size, head_dim missing"),
    ({"hidden_size": "32"}, "hidden_size='32' must be a whole number, 1 to 2147483647"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be a whole number, 1 to 4096"),
    ({"num_attention_heads": 5}, "5 query heads are not a multiple of 2 KV heads"),
    ({"head_dim": 7}, "head_dim=7 must be even"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 must be"),
    ({"num_attention_heads": 10**9, "num_key_value_heads": 1}, "num_attention_heads=1000000000"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes' must be true or false"),
    ({"tie_word_embeddings": None}, "tie_word_embeddings=None must be true or false"),
    ({"hidden_act": None}, "hidden_act=None"),
    ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act='gelu_pytorch_tanh'"),
    ({"hidden_act": LONG}, "hidden_act='xxx"),
    ({"model_type": LONG}, "model_type is 'xxx"),
    ({"model_type": None}, "model_type is None"),
    ({"model_type": []}, "model_type is []"),
    ({"compression_config": {"a": 1}}, "not supported: compression_config"),
    ({"layer_types": 2}, "layer_types=2 must be a list"),
    ({"layer_types": "full_attention"}, "layer_types='full_attention' must be a list"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 layers and num_hidden_layers is 2"),
    ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types with chunked_"),
    ({"layer_types": ["full_attention", None]}, "layer_types with None"),
    ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 8}, "with sliding_attention"),
]
ROPE = [
    ("default", "rope_parameters='default' must be a JSON object"),
    ([4.0], "rope_parameters=[4.0] must be a JSON object"),
    (4, "rope_parameters=4 must be"),
    ({"rope_type": None}, "RoPE of type None"),
    ({"rope_type": ["yarn"]}, "RoPE of type ['yarn']"),
    ({"rope_type": LONG}, "RoPE of type 'xxx"),
    ({"factor": 4.0}, "RoPE of type unknown"),
    ({"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, "RoPE of type unknown"),
    ({"full_attention": "yarn"}, "RoPE of type unknown"),
    ({"rope_type": "default", "type": "yarn", "factor": 4.0}, "RoPE of type 'yarn'"),
    ({"type": "linear", "factor": 2.0}, "RoPE of type 'linear'"),
    *(
        ({"rope_type": kind}, f"type '{kind}'")
        for kind in ("dynamic", "longrope", "llama3", "mrope")
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ({"rope_type": "default", "rope_theta": 0}, "rope_theta=0 must be a positive finite number"),
    ({"rope_type": "default", "rope_theta": "1e6"}, "rope_theta='1e6' must be"),
    ({"full_attention": {"rope_type": "yarn", "factor": 4.0}}, "RoPE of type 'yarn'"),
    ({"full_attention": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor=0.25"),
    ({"sliding_attention": {"rope_type": "default"}}, "settings for 'sliding_attention'"),
    (
        {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4}},
        "settings for 'sliding_attention'",
    ),
    ({"full_attention": {}, "rope_type": "yarn"}, "settings for full_attention and others beside"),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *OTHERS,
        *(({place: rope}, m) for rope, m in ROPE for place in ("rope_parameters", "rope_scaling")),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_what_cannot_be_computed_is_named(copied, changes, message):
    path = copied("plain")
    edit_config(path, **changes)
    if "rope_scaling" in changes:
        message = message.replace("rope_parameters=", "rope_scaling=")
    sentence = refusal(path, read_config)
    assert sentence.startswith(f"{path / 'config.json'}: ") and message in sentence


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5e6, "factor": 1.0},
        {"rope_theta": 5e6, "partial_rotary_factor": 1.0},
        {"full_attention": {"rope_type": "default", "rope_theta": 5e6}},
    ],
)
def test_plain_rope_in_every_form_is_read(copied, rope):
    path = copied("plain")
    edit_config(path, rope_parameters=rope)
    assert read_config(path).rope_theta == 5e6


MIXERS = [
    (None, "mixers: None must be a list"),
    (LONG, "xxx' must be a list"),
    ([{"kind": ["hydra"]}] * 3, "mixers.0: {'kind': ['hydra']} must be an object with kind "),
    ([{"kind": "hydra", "fa_heads": LONG}] * 3, "mixers.0.fa_heads: 'xxx"),
    ([{"kind": "hydra", "fa_heads": [0] * 999}] * 3, "layer 0: fa_heads=(0, 0, 0, 0, 0, 0, ...)"),
    ([{"kind": "hydra", "fa_heads": [0], "choices": LONG}] * 3, "mixers.0.choices: 'xxx"),
    ([{"kind": "hydra", "fa_heads": [0], LONG: 1}] * 3, "mixers.0: there is no field 'xxx"),
    (
        [{"kind": "hydra", "fa_heads": [0], "choices": {"log_scale_base": math.nan}}] * 3,
        "log_scale_base=nan must be above 1",
    ),
    ([], "num_hidden_layers is 3 and 'mixers' has 0 layers"),
]


@pytest.mark.parametrize(("mixers", "message"), MIXERS)
def test_impossible_mixers_are_named(copied, mixers, message):
    path = copied("hybrid")
    edit_config(path, mixers=mixers)
    assert message in refusal(path, read_config)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_theta_where_transformers_5_writes_it(copied, key):
    rope = {"rope_type": "default", "rope_theta": 1e4}
    edit_config(path := copied("plain"), rope_theta=ABSENT, **{key: rope})
    assert read_config(path) == toy.TEACHER


def test_untied_is_the_default_as_in_transformers(copied):
    edit_config(path := copied("plain"), tie_word_embeddings=ABSENT)
    assert not read_config(path).tied_embeddings
