import struct

import numpy as np
import pytest

from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection.plans.quality import plan_quality
from tests.hydrahead_jax.selection.made_scores import made_scores

curves = pytest.importorskip(
    "train.reports.curves", reason="matplotlib, of the train extra, is missing"
)

COUNTS = (0, 1, 2, 8)
AGREED = {"mean": 0.5, "low": 0.4, "high": 0.6}
ROW = {"spearman_critical": None, "spearman_all": AGREED, "jaccard": AGREED}


def drawn(path) -> bytes:
    """Returns the picture, after a check that it has the announced size."""
    data = path.read_bytes()
    assert struct.unpack(">II", data[16:24]) == curves.CURVE_SIZE and len(data) > 5000
    return data


def test_knock_out_curves_show_every_order_and_the_budget(tmp_path):
    orders = {"score order": [1.0, 0.0, 0.0, 0.0], "reverse order": [1.0, 1.0, 1.0, 0.0]}
    orders |= {f"random order {draw}": [1.0, 0.9 / draw, 0.8, 0.0] for draw in (1, 2)}
    path, pictures = tmp_path / "curve.png", set()
    for name in (None, *orders):
        curves.save_knock_out_curves(
            COUNTS, orders | ({name: [0.5] * 4} if name else {}), path, budget=None
        )
        pictures.add(drawn(path))
    curves.save_knock_out_curves(COUNTS, orders, path, budget=2)
    assert len(pictures | {drawn(path)}) == 6


def test_stability_curves_show_parts_halves_and_lengths_and_leave_out_what_is_missing(tmp_path):
    path = tmp_path / "stability.png"
    whole = {
        "over_pairs": [{"pairs": 1, **ROW}, {"pairs": 6, **ROW}],
        "split_half": [{"pairs": 3, **ROW}],
        "over_length": [{"length": 64, **ROW}],
    }
    curves.save_stability_curves(whole, path)
    with_halves = drawn(path)
    curves.save_stability_curves({**whole, "split_half": []}, path)
    assert drawn(path) != with_halves
    curves.save_length_curve(whole, path)
    drawn(path)


def test_the_quality_curve_shows_the_plan(tmp_path, planted_config):
    scores = made_scores(np.random.default_rng(0).random((1, 2, 4)))
    path, pictures = tmp_path / "quality.png", set()
    for heads in (((0,), (1,)), ((0, 1), (2, 3))):
        plan = HeadPlan(fa_heads=heads, query_heads=4, kv_heads=2, strategy="x")
        curves.save_quality_curve(plan_quality(scores, planted_config, plan), path)
        pictures.add(drawn(path))
    assert len(pictures) == 2
