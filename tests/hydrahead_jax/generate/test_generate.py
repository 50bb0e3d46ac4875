"""Checks continuations of ragged prompts."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.generate import api, generate
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import merge
from tests.hydrahead_jax.models.toy import MODELS, TEACHER, B, H, N, T, hidden, params_of

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
NEW = 6
HYBRID = "gated fusion, shared projections"


def run(name: str = "teacher", prompts=PROMPTS, **settings):
    return generate(MODELS[name], params_of(name), prompts, max_new_tokens=NEW, **settings)


def most_likely(name: str, replies, edits=None) -> list[list[int]]:
    """Returns what one forward pass over prompts and replies predicts in place of the replies."""
    tokens_BT, ids_BT = np.zeros((2, B, T), np.int32)
    for row, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        length = len(prompt) + NEW
        tokens_BT[row, :length], ids_BT[row, :length] = prompt + reply, 1
    hidden_BTD, _ = hidden(MODELS[name], params_of(name), tokens_BT, ids_BT, edits)
    best_BT = np.argmax(merge(MODELS[name], params_of(name)).logits(hidden_BTD), axis=-1)
    starts = [len(prompt) - 1 for prompt in PROMPTS]
    return [best_BT[row, at : at + NEW].tolist() for row, at in enumerate(starts)]


@pytest.mark.parametrize("name", ["teacher", HYBRID])
def test_greedy_takes_the_most_likely_token_of_the_full_forward(name):
    replies = run(name)
    assert most_likely(name, replies) == replies


def edits_of(name: str, removed: tuple[int, ...]) -> dict[int, HeadEdit]:
    """Returns edits that make the same heads of every layer put out a constant."""
    mask_BN = jnp.zeros((1, N)).at[0, jnp.array(removed)].set(1.0)
    value_BTNH = jnp.asarray(np.random.default_rng(3).normal(size=(1, 1, N, H)), jnp.float32)
    return dict.fromkeys(range(MODELS[name].layers), HeadEdit(mask_BN, value_BTNH))


@pytest.mark.parametrize("name", ["teacher", HYBRID])
def test_edits_hold_for_every_token_of_the_prompt_and_of_the_reply(name):
    plain, compiled = run(name), None
    for removed in ((0, 1), (2, 3)):
        edits = edits_of(name, removed)
        replies = run(name, prefill_chunk=4, edits=edits)
        spread = lambda edit: HeadEdit(
            jnp.broadcast_to(edit.mask_BN, (B, N)), jnp.broadcast_to(edit.value_BTNH, (B, T, N, H))
        )
        full = {layer: spread(edit) for layer, edit in edits.items()}
        assert most_likely(name, replies, full) == replies != plain
        compiled = compiled or api._run._cache_size()
    assert api._run._cache_size() == compiled


@pytest.mark.parametrize("name", ["teacher", HYBRID])
def test_prefill_in_chunks_gives_the_same_tokens(name):
    """With chunks of 4 the longest prompt takes two, and the shortest starts in the second."""
    assert run(name, prefill_chunk=4) == run(name)


def test_sampling_is_determined_by_the_seed():
    first, again = (run(temperature=1.0, seed=1) for _ in range(2))
    assert first == again != run(temperature=1.0, seed=2)
    assert run(temperature=1.0, top_k=1, seed=1) == run()


def test_a_stop_token_ends_a_reply_and_is_not_part_of_it():
    whole = run()
    stop = whole[2][3]
    cut = [row[: row.index(stop)] if stop in row else row for row in whole]
    assert run(stop_token=stop) == run(stop_token=np.array(stop)) == cut != whole


@pytest.mark.parametrize("kind", [list, tuple, np.array, set])
def test_the_first_of_several_stop_tokens_ends_a_reply(kind):
    whole = run()
    stops = {whole[0][4], whole[1][2], whole[2][3]}
    ends = [min(place for place, token in enumerate(row) if token in stops) for row in whole]
    if kind is np.array:
        stops = list(stops)
    assert run(stop_token=kind(stops)) == [row[:end] for row, end in zip(whole, ends, strict=True)]
    assert run(stop_token=kind([])) == whole


def test_a_stop_token_fills_the_rest_of_its_row(monkeypatch):
    whole, seen = run(), []
    decoded = lambda row: seen.append(row) or row
    monkeypatch.setattr(api, "until_stop", lambda row, stops: decoded(row))
    stop = whole[2][3]
    run(stop_token=stop)
    for row, full in zip(seen, whole, strict=True):
        end = full.index(stop) if stop in full else NEW
        assert row == full[:end] + [stop] * (NEW - end)


def test_a_very_low_temperature_is_greedy():
    assert run(temperature=1.2e-38, seed=1) == run()


def test_generation_ends_when_all_rows_have_stopped():
    assert run(prompts=[PROMPTS[0]] * 2, stop_token=run()[0][0]) == [[], []]


def test_a_function_is_compiled_once_for_prompts_of_similar_length(monkeypatch):
    traced, prefill = [], api.prefill

    def counted(*args, **kwargs):
        traced.append(1)
        return prefill(*args, **kwargs)

    monkeypatch.setattr(api, "prefill", counted)
    for prompts in ([[1] * 3, [2] * 9], [[3] * 20, [4]], [[5], [6]]):
        generate(TEACHER, params_of("teacher"), prompts, max_new_tokens=4, seed=3)
    assert len(traced) == 1


def test_no_prompts_no_replies():
    assert run(prompts=[]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(prompts=[[1], []]), "prompt 1 is empty; a prompt needs at least one token"),
        (dict(prompts=[[1, 96]]), "prompt 0 has token ids from 1 to 96, the model knows 0 to 95"),
        (dict(prompts=[[-1]]), "prompt 0 has token ids from -1 to -1"),
        (
            dict(prompts=[[1] * 123]),
            r"come to 129 tokens and the model was trained for 128; shorten them, or allow it",
        ),
        (dict(prefill_chunk=0), "prefill_chunk is 0; give 1 or more"),
        (
            dict(prompts=np.array([1, 2])),
            "prompt 0 is not a list of token ids; give a list for each prompt",
        ),
        (dict(prompts=np.array([[[1]]])), "prompt 0 is not a list of token ids"),
        (dict(prompts=np.array([[1.5]])), "prompt 0: token ids must be whole numbers, not float64"),
        (dict(prompts=[[2**40]]), "prompt 0 has token ids from 1099511627776"),
        (dict(temperature=-1.0), "temperature is -1.0; give 0 .greedy. or a positive finite"),
        (dict(temperature=math.nan), "temperature is nan"),
        (dict(temperature=math.inf), "temperature is inf"),
        (dict(temperature=1e-45), "temperature is 1e-45"),
        (dict(temperature=1e39), "temperature is 1e[+]39"),
        (dict(top_k=0), "top_k is 0; give 1 or more"),
        (dict(top_k=True), "top_k is True"),
        (dict(top_p=0.0), "top_p is 0.0; give a probability above 0 and up to 1"),
        (dict(top_p=1.1), "top_p is 1.1"),
        (dict(top_p=math.nan), "top_p is nan"),
        (dict(seed=-1), "seed is -1; give a whole number from 0 to 4294967295"),
        (dict(seed=2**32), "seed is 4294967296"),
        (dict(seed=True), "seed is True"),
        (dict(stop_token=96), "stop_token has token ids from 96 to 96, the model knows 0 to 95"),
        (dict(stop_token=(3, -1)), "stop_token has token ids from -1 to 3"),
        (dict(stop_token=np.array([[3]])), "stop_token must be a token id or a list of token ids"),
    ],
)
def test_impossible_requests_are_refused_in_one_sentence(settings, message):
    with pytest.raises(UserError, match=message) as error:
        run(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, -1, True])
def test_no_new_tokens_are_refused(count):
    with pytest.raises(UserError, match=f"max_new_tokens is {count}; give 1 or more"):
        generate(TEACHER, params_of("teacher"), PROMPTS, max_new_tokens=count)


def test_beyond_the_trained_length_on_request():
    replies = run(prompts=[[1] * 123], beyond_trained_length=True)
    assert [len(reply) for reply in replies] == [NEW]
