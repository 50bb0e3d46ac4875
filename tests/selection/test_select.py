import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from hydrahead_jax.config import Hydra
from hydrahead_jax.errors import UserError
from hydrahead_jax.selection import SelectionSettings, allocate, receivers_kept, select

RECEIVER = (1, 2)
SETTINGS = SelectionSettings(length=64, needles=6, batch=8)


def test_the_planted_receiver_is_found(planted_config, planted_params, planted_tokenizer, words):
    """The head that copies the value has effect 1; the one it depends on sends, and has none."""
    ticks = []
    scores, info = select(
        planted_config,
        planted_params,
        planted_tokenizer,
        words,
        SETTINGS,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert ticks == [(8 * i, 40) for i in range(1, 6)]
    assert scores.probes[0] == "niah_single_1" and scores.effect_PLN.shape == (5, 2, 4)
    assert scores.score_LN[RECEIVER] == 1.0 and (scores.effect_PLN[:, *RECEIVER] > 0.99).all()
    assert np.delete(np.abs(scores.raw_PLN).max(axis=0).ravel(), 6).max() < 0.01
    assert (scores.clean_P > 5).all() and (scores.corrupted_P < 0).all()
    assert info["critical_heads"] == 1 and info["convertible_heads"] == 7
    assert info["needles"] == 6 and set(info["skipped"].values()) == {0}
    plan = allocate(scores, planted_config, fa_heads=2)
    assert receivers_kept(scores, plan) == 1 and 2 in plan.fa_heads[1]


def test_a_model_that_does_not_retrieve_is_a_user_error(
    planted_config, planted_params, planted_tokenizer, words
):
    mute = {**planted_params, "final_norm_D": planted_params["final_norm_D"] * 0.0}
    with pytest.raises(UserError, match=r"probe niah_single_1: .* a model that retrieves needles"):
        select(planted_config, mute, planted_tokenizer, words, SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 5}, "pairs=5 must be at least 6"),
        ({"needles": 1}, "needles=1 must be at least 2"),
        ({"batch": 0}, "batch=0 at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        SelectionSettings(**settings)


def test_bad_input_is_refused_before_any_forward(planted_config, planted_tokenizer, words):
    def run(config=planted_config, tokenizer=planted_tokenizer, **settings):
        return select(config, {}, tokenizer, words, SelectionSettings(**settings))

    with pytest.raises(UserError, match="200 tokens are longer than the 128"):
        run(length=200)
    with pytest.raises(UserError, match="do not fit into 12 tokens"):
        run(length=12)
    with pytest.raises(UserError, match="all full attention"):
        run(config=dataclasses.replace(planted_config, mixers=(Hydra(fa_heads=(0,)),) * 2))
    with pytest.raises(UserError, match="no <key_00>"):
        run(tokenizer=Tokenizer(models.WordLevel({"a": 0}, "a")))
