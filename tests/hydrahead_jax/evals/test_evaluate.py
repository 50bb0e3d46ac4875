"""Checks the report of one model."""

import dataclasses
import importlib
import json

import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import (
    EvalSettings,
    Haystack,
    TextLoss,
    evaluate,
    needle_questions,
    niah_accuracy,
    text_loss,
)
from tests.hydrahead_jax.evals.tokenizers import digit_splitting
from tests.hydrahead_jax.evals.toy import CONFIG, HAYSTACK, params, tokenizer


def test_report_is_json_and_holds_what_the_parts_measure():
    settings = EvalSettings(
        lengths=(64, 96), documents=4, needles=3, text_windows=4, batch=4, seed=7
    )
    told = []
    what = (CONFIG, params(), tokenizer(), HAYSTACK, settings)
    report = evaluate(*what, progress=lambda *step: told.append(step))
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {"niah_single", "niah_multikey", "text_loss", "text_loss_by_position"}
    assert list(report["niah_single"]) == list(report["niah_multikey"]) == ["64", "96"]
    how = {"length": 96, "needles": 3, "documents": 4, "seed": 7}
    questions = needle_questions(tokenizer(), HAYSTACK, **how)
    alone = niah_accuracy(CONFIG, params(), questions, batch=4)
    assert report["niah_multikey"]["96"] == alone
    loss = text_loss(CONFIG, params(), HAYSTACK, length=64, windows=4, batch=4)
    assert report["text_loss"] == loss.mean
    assert report["text_loss_by_position"] == loss.by_position
    assert told == [
        ("niah_single 64", 1, 5),
        ("niah_single 96", 2, 5),
        ("niah_multikey 64", 3, 5),
        ("niah_multikey 96", 4, 5),
        ("text_loss", 5, 5),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(lengths=()), "an evaluation needs at least one length"),
        (dict(lengths=(64,), documents=0), "at least one document"),
        (dict(lengths=(64,), template="ruler"), "64 tokens are too few for needle documents"),
        (dict(lengths=(9999,), template="ruler", documents=1), "the haystack holds no text"),
        (dict(lengths=(96, 20)), "8 needles and 1 queries do not fit into 20 tokens"),
        (dict(lengths=(96, 3000)), "the haystack has 2000 tokens, the document needs"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(settings, message):
    told = []
    with pytest.raises(UserError, match=message):
        what = (CONFIG, params(), tokenizer(), HAYSTACK, EvalSettings(**settings))
        evaluate(*what, progress=lambda *step: told.append(step))
    assert not told


def test_a_tokenizer_without_symbols_is_asked_all_tasks_of_ruler(monkeypatch):
    module = importlib.import_module("hydrahead_jax.evals.evaluate")
    shares = iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    monkeypatch.setattr(module, "niah_accuracy", lambda *args, **settings: next(shares))
    monkeypatch.setattr(module, "text_loss", lambda *args, **settings: TextLoss(2.0, {"0-9": 2.0}))
    prose = Haystack(("Time went by. Was it late? " * 30,), lambda: HAYSTACK)
    settings = EvalSettings(lengths=(700, 900), documents=2)
    config = dataclasses.replace(CONFIG, vocab=digit_splitting().get_vocab_size())
    report = evaluate(config, {}, digit_splitting(), prose, settings)
    assert report.pop("text_loss") == 2.0
    assert {kind: list(found.values()) for kind, found in report.items()} == {
        "niah_single": [pytest.approx(0.7), pytest.approx(0.6)],
        "niah_multikey": [pytest.approx(0.2), pytest.approx(0.1)],
        "niah_single_1": [0.9, 0.8],
        "niah_single_2": [0.7, 0.6],
        "niah_single_3": [0.5, 0.4],
        "niah_multikey_1": [0.3, 0.2],
        "niah_multikey_2": [0.1, 0.0],
        "text_loss_by_position": [2.0],
    }


def test_a_tokenizer_of_another_model_is_refused():
    message = "gives '.*' the id 355, and the model knows 0 to 319; use the model's own tokenizer"
    with pytest.raises(UserError, match=message):
        evaluate(CONFIG, {}, digit_splitting(), HAYSTACK, EvalSettings(lengths=(64,)))


@pytest.mark.parametrize("token", [-1, 320])
def test_text_with_unknown_tokens_is_refused(token):
    text = HAYSTACK.copy()
    text[1000] = token
    for measure in (
        lambda: text_loss(CONFIG, params(), text, length=64),
        lambda: evaluate(CONFIG, {}, tokenizer(), text, EvalSettings(lengths=(64,), documents=1)),
    ):
        with pytest.raises(UserError, match=r"the text has token ids from .* knows 0 to 319"):
            measure()
