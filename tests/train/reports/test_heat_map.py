import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from hydrahead_jax.head_plan import HeadPlan
from tests.train.reports.look import legend, names, png_size, ticks
from train.reports import heat_map

PLAN = HeadPlan(fa_heads=((), (2,)), query_heads=4, kv_heads=2, strategy="global-interp")
NONE = HeadPlan(fa_heads=((), ()), query_heads=4, kv_heads=2, strategy="global-interp")
SCORE_LN = np.array([[0.0, 0.02, 0.1, 0.3], [0.04, 0.5, 0.25, 0.01]])


def hatched(axes) -> list[tuple[int, int]]:
    """Returns layer and head of the cells that are hatched."""
    cells = [patch for patch in axes.patches if patch.get_hatch() and patch.get_width() == 1]
    return [(round(cell.get_y() + 0.5), round(cell.get_x() + 0.5)) for cell in cells]


def colours(axes) -> list[list[str]]:
    """Returns the colour of every cell, the lowest layer first."""
    (image,) = axes.images
    return [[to_hex(cell) for cell in row] for row in image.to_rgba(image.get_array())]


@pytest.mark.parametrize("shape", [(2, 4), (4, 8), (28, 16), (64, 64), (1, 1)])
def test_a_map_has_the_announced_size_and_whole_numbers_at_its_axes(tmp_path, figures, shape):
    layers, heads = shape
    score_LN = np.random.default_rng(0).exponential(0.05, shape)
    plan = HeadPlan(fa_heads=((0,),) * layers, query_heads=heads, kv_heads=1, strategy="fixed")
    heat_map.save_heat_map(score_LN, tmp_path / "scores.png", plan=plan)
    heat_map.save_plan_map(plan, tmp_path / "plan.png")
    sizes = {
        "scores.png": heat_map.heat_map_size(*shape),
        "plan.png": heat_map.plan_map_size(*shape),
    }
    for name, size in sizes.items():
        assert png_size(tmp_path / name) == size and max(size) < 2000
        axes = figures[name].axes[0]
        assert names(axes) == ("query head", "layer")
        for axis, count in ((axes.xaxis, heads), (axes.yaxis, layers)):
            shown = ticks(axis)
            assert list(shown.values()) == [f"{place:.0f}" for place in shown]
            assert min(shown) == 0 and max(shown) < count and len(shown) >= min(count, 4)


def test_the_map_shows_the_scores_and_rings_the_heads_of_the_plan(tmp_path, figures):
    heat_map.save_heat_map(SCORE_LN, tmp_path / "a.png", plan=PLAN, title="Title", label="label")
    axes, bar = figures["a.png"].axes
    assert axes.get_title(loc="left") == "Title" and bar.get_ylabel() == "label"
    (image,), (rings,) = axes.images, axes.collections
    np.testing.assert_array_equal(image.get_array(), SCORE_LN)
    assert image.origin == "lower" and not image.get_array().mask.any() and not hatched(axes)
    assert image.get_extent() == [-0.5, 3.5, -0.5, 1.5] == [*axes.get_xlim(), *axes.get_ylim()]
    assert rings.get_offsets().tolist() == [[2, 1]] and legend(axes) == ["stays softmax"]
    by_score = np.argsort(SCORE_LN, axis=None)
    brightness = [sum(to_rgb(colour)) for colour in np.ravel(colours(axes))[by_score]]
    assert (np.diff(brightness) < 0).all()
    marks = [0.0, 0.006, 0.02, 0.06, 0.1, 0.2, 0.4]
    assert ticks(bar.yaxis) == {mark: f"{mark:.2g}" for mark in marks}


@pytest.mark.parametrize("plan", [None, NONE])
def test_without_heads_to_mark_a_map_has_neither_ring_nor_legend(tmp_path, figures, plan):
    heat_map.save_heat_map(SCORE_LN, tmp_path / "a.png", plan=plan)
    axes = figures["a.png"].axes[0]
    assert not axes.collections and axes.get_legend() is None


def test_heads_that_were_not_measured_or_are_no_softmax_look_like_neither_zero_nor_high(
    tmp_path, figures
):
    """The scores of the others decide the colours, and nan does not spread."""
    softmax_LN = np.array([[True, True], [True, False]])
    for name, score, given_LN in (("a.png", 9.0, softmax_LN), ("b.png", np.nan, None)):
        score_LN = np.array([[0.0, 0.5], [0.1, score]])
        heat_map.save_heat_map(score_LN, tmp_path / name, softmax_LN=given_LN)
        axes = figures[name].axes[0]
        (image,) = axes.images
        assert hatched(axes) == [(1, 1)]
        np.testing.assert_array_equal(image.get_array().mask, [[False, False], [False, True]])
        assert (image.norm.vmin, image.norm.vmax) == (0.0, 0.5)


def test_the_map_of_a_plan_tells_softmax_heads_kept_and_freed_kv_heads(tmp_path, figures):
    softmax_LN = np.array([[True, True, True, False], [True] * 4])
    heat_map.save_plan_map(PLAN, tmp_path / "a.png", title="Title", softmax_LN=softmax_LN)
    heat_map.save_plan_map(PLAN, tmp_path / "b.png")
    axes = figures["a.png"].axes[0]
    softmax, kept, freed = (to_hex(p.get_facecolor()) for p in axes.get_legend().get_patches())
    assert legend(axes) == ["softmax", "KV head kept", "KV head freed"]
    assert colours(axes) == [[freed] * 4, [freed, freed, softmax, kept]]
    assert axes.images[0].origin == "lower" and axes.get_title(loc="left") == "Title"
    assert hatched(axes) == [(0, 3)] and not hatched(figures["b.png"].axes[0])
