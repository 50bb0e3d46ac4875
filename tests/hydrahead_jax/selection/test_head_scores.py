import csv

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.selection.probes.retrieval import SubProbe
from hydrahead_jax.selection.scores.pair_effects import PairEffects
from hydrahead_jax.selection.scores.scores import HeadScores, head_scores
from hydrahead_jax.selection.scores.statistics import consistency, gini, min_max
from tests.hydrahead_jax.selection.made_scores import made_scores

CAPABILITIES = ("retrieval", "retrieval", "general")


def test_kappa_min_max_gini_by_hand():
    raw_PLN = np.array([[[0.5, -0.02, 0.0099]], [[0.01, 0.0, -0.01]]])
    np.testing.assert_array_equal(consistency(raw_PLN), [[1.0, 0.5, 0.5]])
    x_LN, all_LN = np.array([[2.0, 4.0], [3.0, 2.5]]), np.ones((2, 2), bool)
    np.testing.assert_allclose(min_max(x_LN, all_LN), [[0, 1], [0.5, 0.25]])
    np.testing.assert_allclose(min_max(x_LN, x_LN < 4), [[0, 0], [1, 0.5]])
    np.testing.assert_array_equal(min_max(np.full((2, 2), 0.3), all_LN), np.zeros((2, 2)))
    np.testing.assert_array_equal(min_max(x_LN, ~all_LN), np.zeros((2, 2)))
    np.testing.assert_array_equal(min_max(0.3 + 1e-7 * x_LN, all_LN), np.zeros((2, 2)))
    assert gini(np.array([1.0, 1.0, 1.0, 1.0])) == 0.0
    assert gini(np.array([0.0, 5.0, 0.0, 0.0])) == pytest.approx(0.75)
    assert gini(np.array([3.0, 1.0])) == pytest.approx(0.25)
    assert gini(np.zeros(3)) == gini(np.zeros(0)) == 0.0


def test_means_are_over_pairs_and_clamped_in_each_pair():
    receiver_BLN = np.array([[[1.5, -0.2]], [[0.5, 0.1]]])
    effects = PairEffects(
        receiver_BLN=receiver_BLN,
        sender_BLN=-receiver_BLN,
        total_BLN=2 * receiver_BLN,
        clean_B=np.array([1.0, 2.0]),
        corrupted_B=np.array([0.0, -1.0]),
        skipped=1,
    )
    scores = head_scores([SubProbe(name="a")], [effects], np.ones((1, 2), bool))
    np.testing.assert_allclose(scores.receiver.clamped_PLN, [[[0.75, 0.05]]])
    np.testing.assert_allclose(scores.receiver.raw_PLN, [[[1.0, -0.05]]])
    np.testing.assert_allclose(scores.sender.clamped_PLN, [[[0.0, 0.1]]])
    np.testing.assert_allclose(scores.effect_PLN, [[[0.75, 0.1]]])
    np.testing.assert_allclose(scores.total_PLN, [[[2.0, -0.1]]])
    assert (scores.clean_P, scores.corrupted_P) == (1.5, -0.5)


def test_score_is_effect_times_kappa_fused_over_capabilities():
    scores = made_scores(
        [[[0.8, 0.2], [0.0, 0.004]], [[0.4, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.5, 0.25]]],
        CAPABILITIES,
    )
    np.testing.assert_allclose(scores.effect_LN("retrieval"), [[0.6, 0.1], [0.0, 0.002]])
    np.testing.assert_allclose(scores.kappa_LN("retrieval"), [[1.0, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(scores.capability_LN("retrieval"), [[0.6, 0.05], [0, 0]])
    np.testing.assert_allclose(scores.normalised_LN("retrieval"), [[1, 0.05 / 0.6], [0, 0]])
    np.testing.assert_allclose(scores.score_LN, [[0.5, 0.5 * 0.05 / 0.6], [0.5, 0.25]], rtol=1e-12)


def test_senders_count_by_the_larger_effect_and_are_critical():
    scores = made_scores([[[0.5, 0.0, 0.004, -0.3]]], sender_PLN=[[[0.2, 0.4, 0.0, np.nan]]])
    np.testing.assert_allclose(scores.effect_PLN, [[[0.5, 0.4, 0.004, 0.0]]])
    np.testing.assert_allclose(scores.raw_PLN, [[[0.5, 0.4, 0.004, -0.3]]])
    np.testing.assert_allclose(scores.score_LN, [[1.0, 0.8, 0.0, 0.0]])
    np.testing.assert_array_equal(scores.receivers_LN, [[True, False, False, False]])
    np.testing.assert_array_equal(scores.critical_LN, [[True, True, False, False]])
    np.testing.assert_array_equal(scores.convertible_LN, [[False, False, True, False]])


def test_critical_and_convertible_counts_and_gini():
    scores = made_scores([[[0.5, 0.012], [-0.02, 0.009]], [[0.5, 0.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(scores.critical_LN, [[True, False], [False, False]])
    np.testing.assert_array_equal(scores.convertible_LN, [[False, False], [False, True]])
    np.testing.assert_allclose(scores.gini_L, [0.5 - 0.006 / 0.506, 0.5])


def test_delta_rule_heads_of_a_hybrid_have_no_score_and_no_part():
    softmax_LN = [[True, False, True], [False, False, False]]
    effect_PLN = [[[0.2, 0.9, 0.6], [0.9, 0.9, 0.9]]]
    scores = made_scores(
        effect_PLN, sender_PLN=effect_PLN, total_PLN=effect_PLN, softmax_LN=softmax_LN
    )
    np.testing.assert_allclose(scores.score_LN, [[0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(scores.critical_LN, softmax_LN)
    assert scores.convertible_LN.sum() == 0 == scores.total_LN[~scores.softmax_LN].sum()
    np.testing.assert_allclose(scores.gini_L, [0.25, 0.0])


def test_names_that_a_table_cannot_hold_are_user_errors():
    with pytest.raises(UserError, match="a capability has a colon"):
        made_scores(np.zeros((1, 1, 2)), ("a:b",))
    scores = made_scores(np.zeros((2, 1, 2)))
    with pytest.raises(UserError, match="names of their own, not a, a"):
        HeadScores(**(vars(scores) | {"probes": ("a", "a")}))


def _random_scores() -> HeadScores:
    rng = np.random.default_rng(0)
    sender_PLN = rng.normal(size=(3, 2, 4))
    sender_PLN[:, 0, 1] = np.nan
    softmax_LN = np.ones((2, 4), bool)
    softmax_LN[1, 2] = False
    return made_scores(
        rng.normal(size=(3, 2, 4)).astype(np.float32),
        CAPABILITIES,
        sender_PLN=sender_PLN,
        total_PLN=rng.normal(size=(3, 2, 4)),
        softmax_LN=softmax_LN,
    )


def test_csv_round_trip(tmp_path):
    path = tmp_path / "scores.csv"
    scores = _random_scores()
    scores.save_csv(path)
    loaded = HeadScores.load_csv(path)
    assert (loaded.probes, loaded.capabilities) == (scores.probes, scores.capabilities)
    pairs = [(*loaded.receiver, *loaded.sender), (*scores.receiver, *scores.sender)]
    for name in ("softmax_LN", "total_PLN", "clean_P", "corrupted_P", "score_LN", "effect_PLN"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))
    for ours, theirs in zip(*pairs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_was_not_measured_stays_so(tmp_path):
    made_scores(np.full((1, 2, 2), 0.5)).save_csv(tmp_path / "scores.csv")
    loaded = HeadScores.load_csv(tmp_path / "scores.csv")
    assert loaded.sender is None and loaded.total_PLN is None


def test_csv_has_a_baseline_row_and_columns_with_names(tmp_path):
    path = tmp_path / "scores.csv"
    scores = _random_scores()
    scores.save_csv(path)
    assert b"\r" not in path.read_bytes()
    with path.open(newline="") as file:
        baseline, *rows = list(csv.DictReader(file))
    assert baseline["layer"] == baseline["head"] == "-1" and baseline["score"] == ""
    assert baseline["general:probe_2:clean"] == "2.1"
    assert [int(row["softmax"]) for row in rows] == scores.softmax_LN.ravel().tolist()
    assert rows[1]["retrieval:probe_0:sender"] == "" != rows[1]["retrieval:probe_0:receiver"]
    assert rows[6]["retrieval:probe_0:receiver"] == ""
    assert float(rows[3]["general:score"]) == scores.normalised_LN("general")[0, 3]
    assert float(rows[3]["score"]) == scores.score_LN[0, 3]
    for column, classes in (
        ("critical", scores.critical_LN),
        ("is_receiver", scores.receivers_LN),
        ("convertible", scores.convertible_LN),
    ):
        assert [int(row[column]) for row in rows] == classes.ravel().tolist()


def test_probe_names_may_hold_colons_commas_and_quotes(tmp_path):
    path = tmp_path / "scores.csv"
    names = ("a:clean", 'my "probe", 1:x')
    scores = HeadScores(**(vars(made_scores(np.full((2, 1, 2), 0.5))) | {"probes": names}))
    scores.save_csv(path)
    assert HeadScores.load_csv(path).probes == names


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [], "it has no heads"),
        (lambda lines: ["layer,head", *lines[1:]], "it has no sub-probes"),
        (lambda lines: [lines[0].replace("raw", "old"), *lines[1:]], "score the heads again"),
        (lambda lines: [lines[0], *lines[2:]], "not the baseline row"),
        (lambda lines: lines[:-2] + lines[-1:], "not all heads of all layers in order"),
        (lambda lines: [*lines[:-1], "9999999" + lines[-1]], "not all heads of all layers"),
        (lambda lines: [*lines[:-1], "x" + lines[-1]], "invalid literal"),
        (lambda lines: [*lines[:-1], lines[-1].rsplit(",", 4)[0]], "shorter or longer"),
        (lambda lines: [*lines[:-1], lines[-1].replace("0.5", "much")], "'much'"),
        (lambda lines: [*lines[:-1], lines[-1].replace("0.5", "nan")], "lacks a direct effect"),
        (lambda lines: [*lines[:-1], lines[-1].replace("0.5", "")], "lacks a direct effect"),
        (lambda lines: [*lines[:-1], lines[-1].replace("0.5", "1.5")], "not between 0 and 1"),
        (lambda lines: [*lines[:-1], lines[-1].replace("1,1,1", "1,1,yes", 1)], "softmax holds"),
        (lambda lines: [lines[0], lines[1].rsplit(",", 1)[0] + ",", *lines[2:]], "a readout"),
        (lambda lines: [*lines[:-1], lines[-1].replace("0.5", "\0")], "to float"),
    ],
)
def test_a_spoiled_csv_is_a_user_error(tmp_path, spoil, message):
    path = tmp_path / "scores.csv"
    made_scores(np.full((2, 2, 2), 0.5)).save_csv(path)
    path.write_text("\n".join(spoil(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=rf"scores\.csv is not a table of head scores: .*{message}"):
        HeadScores.load_csv(path)


def test_another_file_is_a_user_error(tmp_path):
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    for name in ("none.csv", "picture.csv"):
        with pytest.raises(UserError, match=rf"{name} is not a table"):
            HeadScores.load_csv(tmp_path / name)


def test_a_csv_that_a_spreadsheet_saved_with_a_byte_order_mark_is_read(tmp_path):
    path, scores = tmp_path / "scores.csv", made_scores(np.full((2, 2, 2), 0.5))
    scores.save_csv(path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    again = HeadScores.load_csv(path)
    np.testing.assert_array_equal(again.receiver.clamped_PLN, scores.receiver.clamped_PLN)
