import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.evals.niah import needle_document, needle_symbols
from hydrahead_jax.models import merge
from hydrahead_jax.selection.knockout import (
    _exact_match,
    knock_out,
    knock_out_edits,
    mean_heads,
    teacher_forced_accuracy,
)
from hydrahead_jax.selection.ranking import random_order

RECEIVER = (1, 2)


@pytest.fixture(scope="module")
def documents(planted_tokenizer, words):
    symbols = needle_symbols(planted_tokenizer)
    rng = np.random.default_rng(5)
    return [needle_document(symbols, words, rng, length=48, needles=1) for _ in range(10)]


@pytest.fixture(scope="module")
def tokens_BT(documents):
    return np.stack([document.tokens_T for document in documents])


@pytest.fixture(scope="module")
def answer_BT(documents):
    return np.stack([document.answer_T for document in documents])


@pytest.fixture(scope="module")
def mean_LNH(planted_config, planted_params, tokens_BT):
    return mean_heads(planted_config, planted_params, tokens_BT, batch=4)


def test_mean_heads(planted_config, planted_params, tokens_BT, mean_LNH):
    taps = merge(planted_config, planted_params)(jnp.asarray(tokens_BT)).taps
    expected_LNH = np.stack([np.asarray(tap.heads_BTNH).mean(axis=(0, 1)) for tap in taps])
    np.testing.assert_allclose(mean_LNH, expected_LNH, atol=1e-5)


def test_no_heads_removed_is_the_model(planted_config, planted_params, tokens_BT, mean_LNH):
    model = merge(planted_config, planted_params)
    edited = model(jnp.asarray(tokens_BT), edits=knock_out_edits([], mean_LNH))
    plain = model(jnp.asarray(tokens_BT))
    np.testing.assert_array_equal(edited.hidden_BTD, plain.hidden_BTD)


def test_all_heads_removed_is_mean_ablation_everywhere(
    planted_config, planted_params, tokens_BT, mean_LNH
):
    """Then every mixer adds one vector that does not depend on the tokens."""
    model = merge(planted_config, planted_params)
    edits = knock_out_edits(random_order(2, 4, seed=0), mean_LNH)
    taps = model(jnp.asarray(tokens_BT), edits=edits).taps
    for block, tap, mean_NH in zip(model.layers, taps, mean_LNH, strict=True):
        expected_D = np.einsum("NH,NHD->D", mean_NH, block.mixer.w_o_NHD[...])
        expected_BTD = np.broadcast_to(expected_D, tap.mixer_out_BTD.shape)
        np.testing.assert_allclose(tap.mixer_out_BTD, expected_BTD, atol=1e-5)


def test_knocking_out_the_receiver_is_what_costs_accuracy(
    planted_config, planted_params, tokens_BT, answer_BT, mean_LNH
):
    accuracy = teacher_forced_accuracy(
        planted_config, planted_params, tokens_BT, answer_BT, batch=4
    )
    others = [h for h in np.ndindex(2, 4) if h not in (RECEIVER, (0, 1))]
    curve = knock_out([*others, (0, 1), RECEIVER], [0, 3, 6, 7], mean_LNH, accuracy)
    np.testing.assert_array_equal(curve, [1.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(knock_out([RECEIVER], [0, 1], mean_LNH, accuracy), [1.0, 0.0])


def test_accuracy_may_be_any_function_of_the_edits(mean_LNH):
    def removed(edits):
        return float(sum(edit.mask_BN.sum() for edit in edits.values()))

    np.testing.assert_array_equal(
        knock_out(random_order(2, 4, 0), [0, 2, 8], mean_LNH, removed), [0, 2, 8]
    )


def test_accuracy_counts_documents_with_every_answer_token_right(
    planted_config, planted_params, tokens_BT, answer_BT
):
    half_wrong_BT = tokens_BT.copy()
    half_wrong_BT[:5, -1] = tokens_BT[:5, 0]
    accuracy = teacher_forced_accuracy(
        planted_config, planted_params, half_wrong_BT, answer_BT, batch=4
    )
    assert accuracy({}) == 0.5
    moved_BT = answer_BT.copy()
    moved_BT[0] = np.roll(moved_BT[0], 1)
    with pytest.raises(ValueError, match="same places"):
        teacher_forced_accuracy(planted_config, planted_params, tokens_BT, moved_BT)


def test_one_compilation_serves_the_whole_curve(
    planted_config, planted_params, tokens_BT, answer_BT, mean_LNH
):
    before = _exact_match._cache_size()
    accuracy = teacher_forced_accuracy(
        planted_config, planted_params, tokens_BT, answer_BT, batch=5
    )
    knock_out(random_order(2, 4, 0), range(9), mean_LNH, accuracy)
    assert _exact_match._cache_size() == before + 1
