import numpy as np
import pytest

from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection.plans.quality import plan_quality
from tests.hydrahead_jax.selection.made_scores import made_scores
from tests.toy_config import toy_config
from tests.train.reports.look import legend, lines, names, png_size, ticks
from train.reports import curves

COUNTS = (0, 1, 2, 8)
AGREED = {"mean": 0.5, "low": 0.4, "high": 0.6}
ROW = {"spearman_critical": None, "spearman_all": AGREED, "jaccard": AGREED}
TITLES = {
    curves.save_knock_out_curves: "Knock-out",
    curves.save_stability_curves: "Stability",
    curves.save_length_curve: "Probe length",
    curves.save_quality_curve: "Quality per byte",
}
MEASURES = ["rank correlation, all heads", "overlap of the best heads (Jaccard)"]
STABILITY = {
    "over_pairs": [{"pairs": 1, **ROW}, {"pairs": 6, **ROW}],
    "split_half": [{"pairs": 3, **ROW}],
    "over_length": [{"length": 64, **ROW}, {"length": 128, **ROW}],
}


@pytest.fixture
def drawn(tmp_path, figures):
    """Draws a picture with one of the functions, and returns its axes."""

    def draw(save, *values, **settings):
        path = tmp_path / "curves.png"
        save(*values, path, **settings)
        assert png_size(path) == curves.CURVE_SIZE
        (axes,) = figures[path.name].axes
        assert figures[path.name].get_suptitle() == TITLES[save]
        return axes

    return draw


def error_bars(axes) -> dict[str, list]:
    """Returns x, y, low and high of every mark of each measure; hollow marks have no name."""
    found = {}
    for bars in axes.containers:
        line, _, (vertical,) = bars.lines
        ends_X2 = np.array([segment[:, 1] for segment in vertical.get_segments()])
        name = "hollow" if line.get_markerfacecolor() == "white" else bars.get_label()
        points_2X = np.array(line.get_data(), float)
        found.setdefault(name, []).append((*points_2X, *ends_X2.T))
    return found


@pytest.mark.parametrize("budget", [None, 2])
def test_knock_out_curves_show_every_order_and_the_budget(drawn, budget):
    best, worst = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    orders = {"score order": best, "reverse order": worst}
    orders |= {f"random order {draw}": [1.0, 0.9 / draw, 0.8, 0.0] for draw in (1, 2)}
    axes = drawn(curves.save_knock_out_curves, COUNTS, orders, budget=budget)
    counts, mean = list(map(float, COUNTS)), [1.0, 0.675, 0.8, 0.0]
    expected = {
        "highest scores first": [counts, best],
        "lowest scores first": [counts, worst],
        "random order, mean and range of 2": [counts, mean],
    }
    if budget is not None:
        expected["the plan keeps 2"] = [[2, 2], [0, 1]]
    assert lines(axes) == expected and legend(axes) == list(expected)
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(0, 1), (1, 0.9), (1, 0.45), (2, 0.8), (8, 0)}
    assert names(axes) == ("heads removed, square-root scale", "documents answered")
    assert ticks(axes.xaxis) == {0: "0", 1: "1", 2: "2", 8: "8"}
    assert list(ticks(axes.yaxis).values()) == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert axes.transData.transform((2, 0))[0] - axes.transData.transform((0, 0))[0] == (
        pytest.approx(axes.bbox.width / 2)
    )


def test_stability_curves_show_parts_and_halves_and_leave_out_what_is_missing(drawn):
    axes = drawn(curves.save_stability_curves, STABILITY)
    marks = error_bars(axes)
    assert list(marks) == [MEASURES[0], "hollow", MEASURES[1]]
    for name, pairs in ((MEASURES[0], [1, 6]), (MEASURES[1], [1, 6]), ("hollow", [3])):
        for x, y, low, high in marks[name]:
            np.testing.assert_allclose(x, pairs, rtol=0.1)
            np.testing.assert_allclose([y, low, high], [[v] * len(pairs) for v in (0.5, 0.4, 0.6)])
    assert len(marks["hollow"]) == 2
    assert sorted(legend(axes)) == sorted([*MEASURES, "hollow: one half against the other"])
    assert names(axes) == ("pairs a sub-probe", "agreement")
    assert ticks(axes.xaxis) == {1: "1", 6: "6"} and axes.get_xscale() == "log"
    axes = drawn(curves.save_stability_curves, {**STABILITY, "split_half": []})
    assert list(error_bars(axes)) == MEASURES == sorted(legend(axes), reverse=True)


def test_the_length_curve_shows_every_length(drawn):
    axes = drawn(curves.save_length_curve, STABILITY)
    marks = error_bars(axes)
    assert list(marks) == MEASURES
    for x, *values in (marks[name][0] for name in MEASURES):
        assert x.tolist() == [64, 128]
        np.testing.assert_allclose(values, [[0.5] * 2, [0.4] * 2, [0.6] * 2])
    assert names(axes) == ("tokens of a document", "agreement with the selection's scores")
    assert ticks(axes.xaxis) == {64: "64", 128: "128"} and sorted(legend(axes)) == sorted(MEASURES)


@pytest.mark.parametrize("fa_heads", [((0,), (1,)), ((0, 1), (2, 3))])
def test_the_quality_curve_shows_plans_ratios_and_the_plan(drawn, fa_heads):
    plan = HeadPlan(fa_heads=fa_heads, query_heads=4, kv_heads=2, strategy="x")
    scores = made_scores(np.random.default_rng(0).random((1, 2, 4)))
    quality = plan_quality(scores, toy_config(), plan)
    axes = drawn(curves.save_quality_curve, quality)
    points = lambda costs: [
        [cost.kv_bytes_per_token / 1024 for cost in costs],
        [cost.score_mass for cost in costs],
    ]
    aware = quality.aware
    assert lines(axes) == {
        "best heads first": points(quality.naive),
        "best use of each KV head": [
            (aware.kv_heads_X * quality.kv_head_bytes / 1024).tolist(),
            aware.score_mass_X.tolist(),
        ],
        "a ratio's best heads": points([row.naive for row in quality.budgets]),
        "the same ratio, 2 % slack": points([row.aware for row in quality.budgets]),
        "the plan": points([quality.chosen]),
    }
    assert sorted(legend(axes)) == sorted(lines(axes))
    at = [(text.get_text(), *text.xy) for text in axes.texts]
    shown = points([row.naive for row in quality.budgets])
    assert at == list(zip((row.ratio for row in quality.budgets), *shown, strict=True)) != []
    assert names(axes) == ("KV cache, KiB a token", "score mass kept")
    assert list(ticks(axes.yaxis).values()) == ["0%", "20%", "40%", "60%", "80%", "100%"]
