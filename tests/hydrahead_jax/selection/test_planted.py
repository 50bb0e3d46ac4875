"""Checks that the scores find the two heads of a handmade circuit, and no bystander."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.models import layer_config, merge, merge_block
from hydrahead_jax.ops.rope import rope
from hydrahead_jax.selection import SelectionSettings
from hydrahead_jax.selection.probes.pairs import ProbePairs
from tests.hydrahead_jax.selection.conftest import BYSTANDERS, PREVIOUS_HEAD, RECEIVER

SETTINGS = SelectionSettings(length=64, needles=6, pairs=6)
LAYERS, HEADS = 2, 4


@pytest.fixture(scope="module")
def run(scored):
    return functools.cache(scored)


def others(*heads) -> list[tuple[int, int]]:
    return [head for head in np.ndindex(LAYERS, HEADS) if head not in heads]


def test_the_receiver_is_the_head_that_copies_the_value(run):
    receiver = run(SETTINGS).scores.receiver
    assert (receiver.clamped_PLN[:, *RECEIVER] > 0.99).all()
    assert max(np.abs(receiver.raw_PLN[:, *head]).max() for head in others(RECEIVER)) < 0.01


def test_the_sender_is_the_head_that_feeds_it(run):
    selection = run(SETTINGS)
    sender = selection.scores.sender
    assert (sender.clamped_PLN[:, *PREVIOUS_HEAD] > 0.2).all()
    assert max(np.abs(sender.raw_PLN[:, *head]).max() for head in others(PREVIOUS_HEAD)) < 0.01
    assert selection.account["senders"]["converged"]
    assert [r["new"] for r in selection.account["senders"]["rounds"]] == [1, 0]


def test_the_total_effect_sees_both(run):
    total_LN = run(SETTINGS).scores.total_LN
    assert total_LN[RECEIVER] > 0.99 and total_LN[PREVIOUS_HEAD] > 0.3
    assert max(total_LN[head] for head in others(RECEIVER, PREVIOUS_HEAD)) < 0.01


def test_attention_to_the_needle_does_not_tell_the_bystander_from_the_receiver(
    run, planted_config, planted_params
):
    """As a control, what a head attends to says nothing about whether its output matters."""
    selection = run(SETTINGS)
    mass_LN = attention_mass(planted_config, planted_params, selection.pairs[0])
    _, bystander = BYSTANDERS
    assert mass_LN[bystander] > 0.95 * mass_LN[RECEIVER] > 0.9
    assert mass_LN[bystander] > 5 * mass_LN[PREVIOUS_HEAD]
    scores = selection.scores
    assert scores.score_LN[RECEIVER] == 1.0 and scores.score_LN[PREVIOUS_HEAD] > 0.3
    for head in BYSTANDERS:
        assert scores.effect_PLN[:, *head].max() < 0.01 and scores.convertible_LN[head]
    assert scores.critical_LN.sum() == 2


@pytest.mark.parametrize("method", ["screened", "attribution"])
def test_attribution_finds_both_and_says_how_far_it_may_be_trusted(run, method):
    settings = SelectionSettings(length=64, needles=6, pairs=6, senders=method, sample=1)
    selection, exact = run(settings), run(SETTINGS)
    account = selection.account["senders"]
    assert selection.scores.critical_LN[RECEIVER] and selection.scores.critical_LN[PREVIOUS_HEAD]
    np.testing.assert_array_equal(selection.scores.receiver.raw_PLN, exact.scores.receiver.raw_PLN)
    assert account["attribution"]["direct"]["overlap"] == 1.0
    assert account["attribution"]["direct"]["heads"] == 8
    sender_PLN = selection.scores.sender.raw_PLN
    if method == "attribution":
        assert account["rounds"][-1]["patched"] == 0
        assert account["attribution"]["sender"]["heads"] == 1
        return
    missed = account["missed"]
    patched = ~np.isnan(sender_PLN[0, 0])
    assert patched.sum() == 4 - missed["ruled_out"] + missed["sampled"]
    np.testing.assert_allclose(
        sender_PLN[:, 0, patched], exact.scores.sender.raw_PLN[:, 0, patched], atol=1e-6
    )
    assert missed["estimated_mass"] <= missed["largest_in_sample"] * missed["ruled_out"] < 0.04


def test_without_senders_only_direct_effects_are_measured(run):
    settings = SelectionSettings(length=64, needles=6, pairs=6, senders="none")
    scores = run(settings).scores
    assert scores.sender is None and scores.total_PLN is None
    assert scores.critical_LN.sum() == 1


def test_rounds_that_run_out_are_said(run, caplog):
    with caplog.at_level(logging.WARNING):
        settings = SelectionSettings(length=64, needles=6, pairs=6, sender_rounds=1, total=False)
        account = run(settings).account["senders"]
    assert not account["converged"] and "still being found in round 1" in caplog.text


def attention_mass(config, params, pairs: ProbePairs) -> np.ndarray:
    """Returns the mean attention [L, N] from the answer's positions to the tokens that differ."""
    taps = merge(config, params)(jnp.asarray(pairs.tokens_BT)).taps
    J = pairs.answer_BJ.shape[1]
    needle_BS = jnp.asarray(pairs.tokens_BT != pairs.corrupt_BT)
    mass = []
    for layer, tap in enumerate(taps):
        block = merge_block(layer_config(config, layer), params["layers"][layer])
        qkv = block.mixer.qkv
        q_BTNH, k_BSKH, _ = qkv(tap.mixer_in_BTD)
        positions_BT = jnp.broadcast_to(jnp.arange(q_BTNH.shape[1]), pairs.tokens_BT.shape)
        turn = lambda x, at=positions_BT: rope(x, at, theta=config.rope_theta)
        q_BTNH, k_BSKH = turn(qkv.norm_q(q_BTNH)), turn(qkv.norm_k(k_BSKH))
        k_BSNH = jnp.repeat(k_BSKH, config.query_heads // config.kv_heads, axis=2)
        scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH) * config.head_dim**-0.5
        causal_TS = jnp.tril(jnp.ones(scores_BNTS.shape[-2:], bool))
        weights_BNTS = jax.nn.softmax(jnp.where(causal_TS, scores_BNTS, -jnp.inf))
        to_needle_BNT = jnp.einsum("BNTS,BS->BNT", weights_BNTS, needle_BS.astype(float))
        mass.append(to_needle_BNT[:, :, -J - 1 : -1].mean(axis=(0, 2)))
    return np.stack(mass)
