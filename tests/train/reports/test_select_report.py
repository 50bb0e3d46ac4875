"""Checks the page of a selection that measured everything, with handwritten numbers."""

from pathlib import Path

import numpy as np
import pytest

from hydrahead_jax.config import FullAttention, Hydra
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection import Selection
from hydrahead_jax.selection.probes.pairs import ProbePairs
from hydrahead_jax.selection.probes.retrieval import SubProbe
from tests.hydrahead_jax.selection.made_scores import made_scores
from tests.toy_config import toy_config
from tests.train.reports.look import figures_of
from train.reports.select_page import write_select_report

CONFIG = toy_config(mixers=(FullAttention(), Hydra(fa_heads=(0, 1))))
SOFTMAX_LN = np.array([[True] * 4, [True, True, False, False]])
AGREED = {"mean": 0.75, "low": 0.5, "high": 1.0}
ROW = {"spearman_critical": None, "spearman_all": AGREED, "jaccard": AGREED}
PROBES = (SubProbe(name="probe_0"), SubProbe(name="<own>", capability="general"))


@pytest.fixture(scope="module")
def selection() -> Selection:
    rng = np.random.default_rng(0)
    receiver_PLN, sender_PLN = rng.uniform(0.02, 0.5, (2, 2, 2, 4))
    receiver_PLN[:, 0, 1] = 0.625
    sender_PLN[:, 0, 3] = np.nan
    scores = made_scores(
        receiver_PLN,
        ("retrieval", "general"),
        sender_PLN=sender_PLN,
        total_PLN=-receiver_PLN,
        softmax_LN=SOFTMAX_LN,
    )
    names = {"skipped": 3, "clean_readout": 1.25, "corrupted_readout": -4.75}
    account = {key: {p.name: value for p in PROBES} for key, value in names.items()}
    account |= {"gini_by_layer": [0.25, 0.75], "length": 64}
    account["senders"] = {
        "method": "screened",
        "rounds": [
            {"receivers": 2, "patched": 4, "new": 1},
            {"receivers": 3, "patched": 4, "new": 0},
        ],
        "converged": True,
        "missed": {
            "ruled_out": 40,
            "sampled": 8,
            "estimated_mass": 0.0125,
            "largest_in_sample": 0.0031,
        },
        "attribution": {"direct": {"heads": 6, "spearman": 0.875, "top": 1, "overlap": None}},
    }
    pairs = ProbePairs(*np.zeros((3, 9, 64), np.int32), *np.zeros((2, 9, 1), np.int32))
    return Selection(PROBES, (pairs, pairs), (), scores, account)


def page(folder, selection, knock_out, stability) -> str:
    plan = HeadPlan(fa_heads=((1,), (0,)), query_heads=4, kv_heads=2, strategy="global-interp")
    record = {"type": "SelectConfig", "teacher": "a & b", "settings": {"pairs": 9}}
    path = write_select_report(
        folder, record, CONFIG, selection, plan, knock_out, stability, "bfloat16"
    )
    return path.read_text()


CAPTIONS = {
    "receiver": "Direct effect:",
    "sender": "Effect through receivers:",
    "total": "Total effect, nothing frozen;",
    "fused": "Fused score, with a ring",
    "retrieval": "Score of retrieval alone,",
    "chosen": "The plan.",
    "knock_out": "Accuracy over heads removed.",
    "stability": "Agreement of the fused score with that of all pairs,",
    "length": "Agreement of the scores at other document lengths",
    "quality": "Score mass kept over KV bytes",
}


def check_figures(page: str, folder: Path, names: list[str]) -> None:
    """Checks that a page shows these pictures of a folder, in order and under their captions."""
    shown = figures_of(page)
    assert [data for _, data in shown] == [(folder / f"{n}.png").read_bytes() for n in names]
    for name, (caption, _) in zip(names, shown, strict=True):
        assert caption.startswith(CAPTIONS[name])
    assert sorted(names) == sorted(path.stem for path in folder.glob("*.png"))


def test_the_maps_show_the_measured_effects_and_the_plan(selection, tmp_path, figures):
    scores = selection.scores
    page(tmp_path, selection, None, None)
    expected = {
        "receiver": ("Receiver score", scores.receiver.clamped_PLN.mean(axis=0), False),
        "sender": ("Sender score", scores.sender.clamped_PLN.mean(axis=0), False),
        "total": ("Total effect", np.abs(scores.total_PLN).mean(axis=0), False),
        "fused": ("Fused score", scores.score_LN, True),
        "retrieval": ("Retrieval alone", scores.normalised_LN("retrieval"), True),
    }
    for name, (title, values_LN, marked) in expected.items():
        axes = figures[f"{name}.png"].axes[0]
        assert axes.get_title(loc="left") == title
        shown_LN = axes.images[0].get_array()
        missing_LN = np.isnan(values_LN) | ~SOFTMAX_LN
        np.testing.assert_array_equal(shown_LN.mask, missing_LN)
        np.testing.assert_array_equal(shown_LN[~missing_LN], values_LN[~missing_LN])
        rings = [offset for found in axes.collections for offset in found.get_offsets().tolist()]
        assert rings == ([[1, 0], [0, 1]] if marked else [])
    axes = figures["chosen.png"].axes[0]
    assert axes.get_title(loc="left") == "global-interp"
    assert axes.images[0].get_array().tolist() == [[1, 2, 0, 0], [2, 1, 0, 0]]


def test_everything_that_was_measured_is_on_the_page(selection, tmp_path):
    curves = {name: [1.0, 0.375] for name in ("score order", "reverse order", "random order 1")}
    knock_out = {
        "of": {"settings": {"documents": 24, "length": 64, "needles": 1}},
        "counts": [0, 6],
        "curves": curves,
    }
    stability = {
        "usable_pairs": 9,
        "critical_heads": 2,
        "draws": 5,
        "reasons": ["2 of 6 heads are critical"],
        "lengths_left_out": {"1024": "too long to be retrieved"},
        "over_pairs": [{"pairs": 3, **ROW}],
        "split_half": [{"pairs": 4, **ROW}],
        "over_length": [{"length": 32, **ROW}, {"length": 128, **ROW}],
    }
    text = page(tmp_path, selection, knock_out, stability)
    check_figures(text, tmp_path, list(CAPTIONS))
    for expected in (
        "<td>0.625</td>",
        "<td>-0.625</td>",
        "&lt;own&gt;",
        "a &amp; b",
        "<td>3</td><td>1.25</td><td>-4.75</td>",
        "mean 0.50, from 0.25 to 0.75",
        "by the method screened, in 2 rounds",
        "ruled out 40 heads",
        "Hatched heads are delta-rule heads",
        "Heads hatched in the sender&#x27;s map alone",
        "of 8 of them",
        "0.0031",
        "0.0125",
        "<td>6</td><td>0.875</td><td>1</td><td>-</td>",
        "<td>38 %</td>",
        "<td>-</td><td>0.75 (0.50 to 1.00)</td>",
        "2 of 6 heads are critical",
        "too long to be retrieved",
        "settings.pairs=9",
    ):
        assert expected in text, expected
    assert "<own>" not in text and ">nan" not in text


def test_what_was_left_out_is_said_to_be(selection, tmp_path):
    scores = made_scores(selection.scores.receiver.raw_PLN[:1], softmax_LN=SOFTMAX_LN)
    account = {**selection.account, "senders": None}
    parts = (value[:1] for value in selection[:3])
    text = page(tmp_path, Selection(*parts, scores, account), None, None)
    assert text.count("Not measured.") == 2 and "Senders were not measured." in text
    check_figures(text, tmp_path, ["receiver", "fused", "chosen", "quality"])
