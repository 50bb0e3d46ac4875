"""Checks facts that hold for the teacher and for every hybrid."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax import config as config_module
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import abstract_params, merge
from hydrahead_jax.precision import compute_params, training_policy
from tests.hydrahead_jax.models.toy import (
    ALL,
    MODELS,
    B,
    H,
    N,
    T,
    distinct_tokens,
    hidden,
    hybrid,
    params_of,
)
from tests.root import ROOT
from tests.tolerances import OP, assert_close, error_ratio

LEGEND = set(re.findall(r"\b([A-Z]) [a-z]", config_module.__doc__))
PACKED_IDS = np.ones((B, T), np.int32)
PACKED_IDS[0] = [1] * 4 + [2] * 5 + [3] * 3
PACKED_IDS[1] = [0, 0] + [1] * 6 + [2] * 3 + [0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padding", ["right", "left"])
def test_packed_documents_equal_documents_alone(name, padding):
    tokens_BT = distinct_tokens()
    packed_BTD = np.asarray(hidden(MODELS[name], params_of(name), tokens_BT, PACKED_IDS)[0])
    documents = [(b, PACKED_IDS[b] == i) for b in (0, 1) for i in (1, 2, 3) if i in PACKED_IDS[b]]
    alone_BT, alone_ids_BT = np.zeros((2, B, T), np.int32)
    places = []
    for row, (b, inside_T) in enumerate(documents):
        length = inside_T.sum()
        places.append(slice(0, length) if padding == "right" else slice(T - length, T))
        alone_BT[row, places[row]] = tokens_BT[b, inside_T]
        alone_ids_BT[row, places[row]] = 1
    alone_BTD = hidden(MODELS[name], params_of(name), alone_BT, alone_ids_BT)[0]
    for row, (b, inside_T) in enumerate(documents):
        assert_close(alone_BTD[row, places[row]], packed_BTD[b, inside_T], OP)


@pytest.mark.parametrize("name", MODELS)
def test_a_token_depends_on_earlier_tokens_of_its_document_only(name):
    """No token id comes twice, so the embedding's gradient says which positions were read."""
    config, tokens_BT, t = MODELS[name], distinct_tokens(), 7

    @jax.jit
    def read(params):
        model = merge(config, params)
        output = model(
            jnp.asarray(tokens_BT), segment_ids_BT=jnp.asarray(PACKED_IDS), training=True
        )
        return jnp.sum(output.hidden_BTD[0, t] ** 3)

    gradient_VD = np.asarray(jax.grad(read)(params_of(name))["w_embed_VD"])
    assert np.all(np.isfinite(gradient_VD))
    wanted_BT = np.zeros((B, T), bool)
    wanted_BT[0, 4 : t + 1] = True
    np.testing.assert_array_equal(np.any(gradient_VD[tokens_BT] != 0, axis=-1), wanted_BT)


@pytest.mark.parametrize("name", MODELS)
def test_what_stands_on_padding_does_not_matter(name):
    tokens_BT = distinct_tokens()
    other_BT = np.where(PACKED_IDS == 0, tokens_BT[::-1], tokens_BT)
    run = lambda tokens_BT: np.asarray(
        hidden(MODELS[name], params_of(name), tokens_BT, PACKED_IDS)[0]
    )
    real_BT = PACKED_IDS != 0
    np.testing.assert_array_equal(run(other_BT)[real_BT], run(tokens_BT)[real_BT])
    assert np.any(run(other_BT)[~real_BT] != run(tokens_BT)[~real_BT])


@pytest.mark.parametrize("name", MODELS)
def test_head_edits(name):
    """Mask 0 keeps the head, mask 1 takes the value, both exactly; a half lies between."""
    config, params, tokens_BT = MODELS[name], params_of(name), distinct_tokens()
    value_BTNH = np.random.default_rng(3).normal(size=(B, T, N, H)).astype(np.float32)
    mask_BN = np.zeros((B, N), np.float32)
    mask_BN[0, 1] = mask_BN[1, 3] = 1.0
    run = lambda mask_BN: hidden(
        config,
        params,
        tokens_BT,
        edits={config.layers - 1: HeadEdit(jnp.asarray(mask_BN), jnp.asarray(value_BTNH))},
    )
    plain_BTD, plain_taps = hidden(config, params, tokens_BT)
    kept_BTD, _ = run(0 * mask_BN)
    np.testing.assert_array_equal(kept_BTD, plain_BTD)
    edited_BTD, taps = run(mask_BN)
    wanted_BTNH = np.array(plain_taps[-1].heads_BTNH)
    wanted_BTNH[0, :, 1], wanted_BTNH[1, :, 3] = value_BTNH[0, :, 1], value_BTNH[1, :, 3]
    np.testing.assert_array_equal(taps[-1].heads_BTNH, wanted_BTNH)
    changed_B = np.max(np.abs(edited_BTD - plain_BTD), axis=(1, 2)) > 1e-3
    np.testing.assert_array_equal(changed_B, np.arange(B) < 2)
    _, half_taps = run(mask_BN / 2)
    between_BTNH = (wanted_BTNH + np.asarray(plain_taps[-1].heads_BTNH)) / 2
    assert_close(half_taps[-1].heads_BTNH, between_BTNH, 1e-6)


def test_no_edit_equals_an_edit_that_keeps_all_heads():
    name = "teacher"
    tokens_BT = distinct_tokens()
    run = jax.jit(lambda params: merge(MODELS[name], params)(jnp.asarray(tokens_BT)).hidden_BTD)
    wanted_BTD, _ = hidden(MODELS[name], params_of(name), tokens_BT)
    assert_close(run(params_of(name)), wanted_BTD, 1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_parameter_s_name_ends_in_one_letter_a_dimension(name):
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(MODELS[name]))
    assert len(leaves) > 10
    for path, leaf in leaves:
        suffix = path[-1].key.rsplit("_", 1)[-1]
        assert len(suffix) == leaf.ndim and set(suffix) <= LEGEND, jax.tree_util.keystr(path)
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "in_training"),
    [("hybrid, then softmax only", False), ("no fusion, no convolution", True)],
)
def test_the_log_scale_is_for_inference_unless_asked_for(name, in_training):
    """The scale acts on the softmax heads, from the second token on."""
    config, params, tokens_BT = MODELS[name], params_of(name), distinct_tokens()
    fa_heads = list(config.mixers[0].fa_heads)
    heads = [
        np.asarray(hidden(config, params, tokens_BT, training=training)[1][0].heads_BTNH)
        for training in (False, True)
    ]
    changed_BTN = np.any(np.abs(heads[0] - heads[1]) > 1e-6, axis=-1)
    wanted_BTN = np.zeros((B, T, N), bool)
    wanted_BTN[:, 1:, fa_heads] = not in_training
    np.testing.assert_array_equal(changed_BTN, wanted_BTN)


def test_the_legend_is_that_of_the_notation_page():
    page = (ROOT / "docs" / "notation.md").read_text()
    assert set(re.findall(r"^\| ([A-Z]) \|", page, flags=re.MULTILINE)) == LEGEND


def test_branches_without_heads_have_no_parameters():
    kinds = [set(abstract_params(hybrid(heads))["layers"][0]["mixer"]) for heads in ((), ALL)]
    assert kinds == [{"gdn"}, {"fa"}]


@pytest.mark.parametrize("name", ["teacher", "gated fusion, shared projections", "native hybrid"])
def test_bfloat16_parameters_are_computed_with_in_bfloat16(name):
    """Parameters that stay float32 do not promote the residual stream."""
    config, params, tokens_BT = MODELS[name], params_of(name), distinct_tokens()
    low = compute_params(training_policy("bfloat16"), params)
    low_BTD, taps = hidden(config, low, tokens_BT)
    taps = [tap._replace(statistics=None) for tap in taps]  # sums, which are float32
    assert {x.dtype for x in jax.tree.leaves((low_BTD, taps))} == {jnp.dtype(jnp.bfloat16)}
    assert error_ratio(low_BTD.astype(jnp.float32), hidden(config, params, tokens_BT)[0]) < 0.05


def test_the_unembedding_is_the_embedding_only_where_they_are_tied():
    hidden_D = jnp.arange(24.0)
    for name, key, transpose in (
        ("teacher", "w_embed_VD", True),
        ("gated fusion, shared projections", "w_unembed_DV", False),
    ):
        model = merge(MODELS[name], params_of(name))
        weight = np.asarray(params_of(name)[key])
        wanted_V = np.arange(24.0) @ (weight.T if transpose else weight)
        assert_close(model.logits(hidden_D), wanted_V, OP)
