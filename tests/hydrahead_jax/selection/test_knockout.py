import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import needle_document, needle_symbols
from hydrahead_jax.generate import api, generate
from hydrahead_jax.models import merge
from hydrahead_jax.selection.checks.ablation import knock_out_edits, mean_heads
from hydrahead_jax.selection.checks.knockout import (
    REVERSE_ORDER,
    SCORE_ORDER,
    KnockOutSettings,
    knock_out_curves,
    knock_out_orders,
)
from tests.hydrahead_jax.selection.made_scores import made_scores

PREVIOUS_HEAD, RECEIVER = (0, 1), (1, 2)
ANSWER = 2


@pytest.fixture(scope="module")
def tokens_BT(planted_tokenizer, words):
    symbols, rng = needle_symbols(planted_tokenizer), np.random.default_rng(5)
    make = lambda: needle_document(symbols, words, rng, length=48, needles=1).tokens_T
    return np.stack([make() for _ in range(8)])


@pytest.fixture(scope="module")
def mean_LNH(planted_config, planted_params, tokens_BT):
    return mean_heads(planted_config, planted_params, tokens_BT, batch=8)


@pytest.fixture(scope="module")
def plain(planted_config, planted_params, tokens_BT):
    """Returns the output of the unchanged model."""
    return merge(planted_config, planted_params)(jnp.asarray(tokens_BT))


@pytest.fixture(scope="module")
def accuracy(planted_config, planted_params, tokens_BT):
    """Returns a function that measures accuracy by generation."""
    prompts_BT, answers_BJ = np.split(tokens_BT, [-ANSWER], axis=1)

    def measure(edits):
        replies = generate(
            planted_config, planted_params, prompts_BT, max_new_tokens=ANSWER, edits=edits
        )
        return float(np.mean(np.all(np.array(replies) == answers_BJ, axis=1)))

    return measure


def removed(edits) -> float:
    """Returns the number of heads removed, in place of an accuracy."""
    return float(sum(edit.mask_BN.sum() for edit in edits.values()))


def test_mean_heads_counts_every_token_once_and_no_padding(
    planted_config, planted_params, tokens_BT, mean_LNH, plain
):
    expected_LNH = np.stack([np.asarray(tap.heads_BTNH).mean(axis=(0, 1)) for tap in plain.taps])
    np.testing.assert_allclose(mean_LNH, expected_LNH, atol=1e-5)
    padded_BT = np.pad(tokens_BT, ((0, 0), (3, 2)))
    ids_BT = np.pad(np.ones_like(tokens_BT), ((0, 0), (3, 2)))
    again_LNH = mean_heads(planted_config, planted_params, padded_BT, ids_BT, batch=3)
    np.testing.assert_allclose(again_LNH, expected_LNH, atol=1e-5)


def test_no_heads_removed_is_the_model_and_all_removed_hears_nothing(
    planted_config, planted_params, tokens_BT, mean_LNH, plain
):
    model = merge(planted_config, planted_params)
    edited = model(jnp.asarray(tokens_BT), edits=knock_out_edits([], mean_LNH))
    np.testing.assert_array_equal(edited.hidden_BTD, plain.hidden_BTD)
    edits = knock_out_edits(list(np.ndindex(2, 4)), mean_LNH)
    taps = model(jnp.asarray(tokens_BT), edits=edits).taps
    for block, tap, mean_NH in zip(model.layers, taps, mean_LNH, strict=True):
        expected_D = np.einsum("NH,NHD->D", mean_NH, block.mixer.w_o_NHD[...])
        expected_BTD = np.broadcast_to(expected_D, tap.mixer_out_BTD.shape)
        np.testing.assert_allclose(tap.mixer_out_BTD, expected_BTD, atol=1e-5)


def test_the_planted_heads_and_no_others_cost_retrieval(mean_LNH, accuracy):
    """Accuracy is measured by generation; one compiled function serves every point."""
    others = [h for h in np.ndindex(2, 4) if h not in (RECEIVER, PREVIOUS_HEAD)]
    orders = {
        SCORE_ORDER: [RECEIVER, PREVIOUS_HEAD, *others],
        "sender first": [PREVIOUS_HEAD, *others, RECEIVER],
        REVERSE_ORDER: [*others, PREVIOUS_HEAD, RECEIVER],
    }
    before = api._run._cache_size()
    curves = knock_out_curves(orders, (0, 1, 6, 8), mean_LNH, accuracy)
    assert curves[SCORE_ORDER] == [1.0, 0.0, 0.0, 0.0]
    assert curves["sender first"] == [1.0, 0.0, 0.0, 0.0]
    assert curves[REVERSE_ORDER] == [1.0, 1.0, 1.0, 0.0]
    assert api._run._cache_size() == before + 1


def test_curves_continue_where_they_were_and_measure_no_set_twice(mean_LNH):
    heads = list(np.ndindex(2, 4))
    orders, counts = {"a": heads, "b": heads[::-1]}, (0, 2, 8)
    measured, steps = [], []

    def accuracy(edits):
        measured.append(removed(edits))
        return measured[-1]

    whole = knock_out_curves(orders, counts, mean_LNH, accuracy)
    assert whole == {"a": [0, 2, 8], "b": [0, 2, 8]} and measured == [0, 2, 8, 2]
    measured.clear()
    rest = knock_out_curves(
        orders,
        counts,
        mean_LNH,
        accuracy,
        known={"a": [0.0, 2.0]},
        on_point=lambda curves, done, total: steps.append((len(curves["a"]), done, total)),
    )
    assert rest == whole and measured == [8, 2]
    assert steps == [(3, 3, 6), (3, 4, 6), (3, 5, 6), (3, 6, 6)]


def test_orders_hold_every_softmax_head_once_and_the_draws_differ():
    softmax_LN = np.ones((3, 4), bool)
    softmax_LN[0, 1] = False
    effect_PLN = np.random.default_rng(0).random((1, 3, 4))
    scores = made_scores(effect_PLN, softmax_LN=softmax_LN)
    orders = knock_out_orders(scores, kv_heads=2, draws=5)
    best = np.unravel_index(np.argmax(scores.score_LN), (3, 4))
    assert orders[SCORE_ORDER][0] == best == orders[REVERSE_ORDER][-1]
    assert len(orders) == 7 == len({tuple(order) for order in orders.values()})
    softmax = sorted(map(tuple, np.argwhere(softmax_LN)))
    assert all(sorted(order) == softmax for order in orders.values())


def test_the_counts_are_those_given_or_shares_of_the_heads():
    assert KnockOutSettings().counts_for(448) == (0, 4, 9, 22, 45, 90, 157, 224, 336, 448)
    assert KnockOutSettings().counts_for(8) == (0, 1, 2, 3, 4, 6, 8)
    assert KnockOutSettings(counts=(0, 3)).counts_for(8) == (0, 3)
    with pytest.raises(UserError, match="must be at most 2, the softmax heads of the model"):
        KnockOutSettings(counts=(0, 3)).counts_for(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"counts": ()}, r"counts=\(\) must be ascending"),
        ({"counts": (2, 1)}, "must be ascending"),
        ({"counts": (0, 0)}, "must be ascending"),
        ({"counts": (-1, 0)}, "must be ascending"),
        ({"draws": 0}, "at least one draw"),
        ({"prefill_chunk": -1}, "at least one draw"),
        ({"seed": -1}, "a seed of at least 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        KnockOutSettings(**settings)
