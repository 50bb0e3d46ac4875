import dataclasses
import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from hydrahead_jax.config import Hydra
from hydrahead_jax.errors import UserError
from hydrahead_jax.models import init_params
from hydrahead_jax.selection import SelectionSettings, allocate, receivers_kept, select
from hydrahead_jax.selection.probes.retrieval import SubProbe
from tests.hydrahead_jax.selection.conftest import RECEIVER

SETTINGS = SelectionSettings(length=64, needles=6, batch=4, senders="none")


def test_a_selection_and_its_account(planted_config, scored):
    ticks = []
    selection = scored(SETTINGS, progress=lambda *tick: ticks.append(tick))
    scores, account = selection.scores, selection.account
    assert ticks == [("receivers", 4 * i, 56) for i in range(1, 15)]
    assert scores.probes[0] == "niah_single_1" and scores.probes[-1] == "niah_multikey_2_keys"
    assert len(selection.pairs) == len(selection.effects) == len(selection.probes) == 7
    assert all(effects.receiver_BLN.shape == (8, 2, 4) for effects in selection.effects)
    assert (scores.clean_P > 5).all() and (scores.corrupted_P < 0).all()
    assert account["receivers"] == 1 and account["convertible_heads"] == 7
    assert set(account["skipped"].values()) == {0}
    assert json.loads(json.dumps(account)) == account
    plan = allocate(scores, planted_config, fa_heads=2)
    assert receivers_kept(scores, plan) == 1 and 2 in plan.fa_heads[1]


def test_general_pairs_are_a_capability_of_their_own(scored):
    run = functools.partial(scored, SETTINGS)
    pairs = run().pairs[0]
    selection = run(general=[(SubProbe(name="cloze", capability="general"), pairs)])
    assert selection.scores.capabilities == ("retrieval",) * 7 + ("general",)
    assert selection.scores.effect_LN("general")[RECEIVER] > 0.99
    longer = type(pairs)(*(np.tile(x, (1, 3)) for x in pairs))
    with pytest.raises(UserError, match="probe cloze has 192 tokens, more than the 128"):
        run(general=[(SubProbe(name="cloze", capability="general"), longer)])
    foreign = pairs._replace(tokens_BT=pairs.tokens_BT + 60)
    with pytest.raises(
        UserError, match="probe cloze has token ids from 60 to 115, the model knows 0 to 55"
    ):
        run(general=[(SubProbe(name="cloze", capability="general"), foreign)])


def test_a_model_that_does_not_retrieve_is_a_user_error(
    planted_config, planted_params, planted_tokenizer, words
):
    mute = {**planted_params, "final_norm_D": planted_params["final_norm_D"] * 0.0}
    with pytest.raises(UserError, match=r"probe niah_single_1: .* in 0 of 8 pairs, and 6 are need"):
        select(planted_config, mute, planted_tokenizer, words, SETTINGS)


def test_pairs_that_say_too_little_are_left_out_and_counted(scored):
    run = functools.partial(scored, SETTINGS)
    pairs = run().pairs[0]
    dull = pairs.corrupt_BT.copy()
    dull[:2] = pairs.tokens_BT[:2]
    dull[:2, 3] = pairs.tokens_BT[:2, 3] - 1
    pairs = pairs._replace(corrupt_BT=np.abs(dull))
    selection = run(general=[(SubProbe(name="cloze", capability="general"), pairs)])
    assert selection.account["skipped"]["cloze"] == selection.effects[-1].skipped == 2
    assert len(selection.effects[-1].clean_B) == 6


def test_a_hybrid_is_scored_in_its_softmax_heads(
    planted_config, planted_params, planted_tokenizer, words
):
    """Behind the planted layers lies a hybrid layer, which has little effect."""
    mixers = (*planted_config.mixers, Hydra(fa_heads=(0, 3)))
    config = dataclasses.replace(planted_config, mixers=mixers)
    extra = init_params(config, jax.random.key(1))["layers"][2]
    for branch in (extra["mixer"]["fa"], extra["mixer"]["gdn"], extra["mlp"]):
        name = "w_down_FD" if "w_down_FD" in branch else "w_o_NHD"
        branch[name] *= 0.01
    params = {**planted_params, "layers": {**planted_params["layers"], 2: extra}}
    scores = select(config, params, planted_tokenizer, words, SETTINGS).scores
    np.testing.assert_array_equal(scores.softmax_LN[2], [True, False, False, True])
    assert scores.softmax_LN[:2].all() and scores.receivers_LN.sum() == 1
    assert scores.receivers_LN[RECEIVER]
    assert (scores.raw_PLN[:, 2, 1:3] == 0).all()
    assert not scores.convertible_LN[2, 1:3].any()


def test_a_model_without_softmax_heads_is_a_user_error(planted_config, planted_tokenizer, words):
    config = dataclasses.replace(planted_config, mixers=(Hydra(fa_heads=()),) * 2)
    with pytest.raises(UserError, match="no head of this model is softmax"):
        select(config, {}, planted_tokenizer, words, SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 5}, "pairs=5 must be at least 6"),
        ({"needles": 1}, "needles=1 must be at least 2"),
        ({"batch": 0}, "batch=0 at least 1"),
        ({"memory_gib": 0.0}, r"memory_gib=0\.0 must be above 0"),
        ({"sender_rounds": 0}, "sender_rounds=0 must be at least 1"),
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
    with pytest.raises(UserError, match="no <key_00>"):
        run(tokenizer=Tokenizer(models.WordLevel({"a": 0}, "a")), template="symbols")


def test_four_devices_score_as_one_does():
    """Parameters are split over the devices, and so are the pairs."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hydrahead_jax.selection.on_a_mesh"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["devices"] == 4 and report["shards_of_a_weight"] == 4
    assert report["largest_difference"] < 1e-5 < report["largest_effect"]
