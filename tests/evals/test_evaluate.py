"""The report of one model."""

import json

import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import EvalSettings, evaluate, niah_accuracy, text_loss
from tests.evals.toy import CONFIG, HAYSTACK, params, tokenizer


def test_report_is_json_and_holds_what_the_parts_measure():
    settings = EvalSettings(
        lengths=(64, 96), documents=4, needles=3, text_windows=4, batch=4, seed=7
    )
    told = []
    report = evaluate(
        CONFIG,
        params(),
        tokenizer(),
        HAYSTACK,
        settings,
        progress=lambda *step: told.append(step),
    )
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {"niah_single", "niah_multikey", "text_loss", "text_loss_by_position"}
    assert list(report["niah_single"]) == list(report["niah_multikey"]) == ["64", "96"]
    shared = (CONFIG, params(), tokenizer(), HAYSTACK)
    alone = niah_accuracy(*shared, length=96, needles=3, documents=4, batch=4, seed=7)
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
        (dict(lengths=(96, 20)), "8 needles and 1 queries do not fit into 20 tokens"),
        (dict(lengths=(96, 3000)), "the haystack has 2000 tokens, the document needs"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(settings, message):
    told = []
    with pytest.raises(UserError, match=message):
        evaluate(
            CONFIG,
            params(),
            tokenizer(),
            HAYSTACK,
            EvalSettings(**settings),
            progress=lambda *step: told.append(step),
        )
    assert not told
