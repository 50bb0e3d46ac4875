import struct

import numpy as np
import pytest

from hydrahead_jax.head_plan import HeadPlan

heat_map = pytest.importorskip(
    "train.reports.heat_map", reason="matplotlib, of the train extra, is missing"
)


def _size(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 2000
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("shape", [(2, 4), (4, 8), (28, 16), (64, 64), (1, 1)])
def test_heat_map_is_a_png_of_the_announced_size(tmp_path, shape):
    score_LN = np.random.default_rng(0).exponential(0.05, shape)
    plan = HeadPlan(fa_heads=((0,),) * shape[0], query_heads=shape[1], kv_heads=1, strategy="fixed")
    path = tmp_path / "heat_map.png"
    heat_map.save_heat_map(score_LN, path, plan=plan)
    expected = heat_map.heat_map_size(*shape)
    assert _size(path) == expected and max(expected) < 2000


def test_the_plan_and_the_scores_change_the_picture(tmp_path):
    def draw(name, score_LN, **kwargs):
        heat_map.save_heat_map(score_LN, tmp_path / name, **kwargs)
        return (tmp_path / name).read_bytes()

    zeros_LN = np.zeros((2, 4))
    one_LN = zeros_LN.copy()
    one_LN[1, 2] = 0.5
    plan = HeadPlan(fa_heads=((), (2,)), query_heads=4, kv_heads=2, strategy="global-interp")
    empty = HeadPlan(fa_heads=((), ()), query_heads=4, kv_heads=2, strategy="global-interp")
    pictures = [
        draw("a.png", zeros_LN),
        draw("b.png", one_LN),
        draw("c.png", one_LN, plan=plan),
    ]
    assert len(set(pictures)) == 3
    assert draw("d.png", one_LN, plan=empty) == pictures[1] == draw("e.png", one_LN)


@pytest.mark.parametrize("shape", [(2, 4), (28, 16), (1, 1)])
def test_the_map_of_a_plan_is_a_png_of_the_announced_size(tmp_path, shape):
    plan = HeadPlan(fa_heads=((0,),) * shape[0], query_heads=shape[1], kv_heads=1, strategy="fixed")
    path = tmp_path / "plan.png"
    heat_map.save_plan_map(plan, path)
    assert _size(path) == heat_map.plan_map_size(*shape)


def test_heads_that_were_not_measured_or_are_no_softmax_look_like_neither_zero_nor_high(tmp_path):
    """The scores of the others decide the colours, and nan does not spread."""

    def draw(name, score_LN, **kwargs):
        heat_map.save_heat_map(np.array(score_LN), tmp_path / name, **kwargs)
        return (tmp_path / name).read_bytes()

    softmax_LN = np.array([[True, True], [True, False]])
    hatched = draw("a.png", [[0.0, 0.5], [0.1, 9.0]], softmax_LN=softmax_LN)
    assert draw("b.png", [[0.0, 0.5], [0.1, np.nan]]) == hatched
    assert draw("c.png", [[0.0, 0.5], [0.1, 0.0]]) != hatched
    plan = HeadPlan(fa_heads=((0,), (0,)), query_heads=2, kv_heads=1, strategy="x")
    heat_map.save_plan_map(plan, tmp_path / "d.png", softmax_LN=softmax_LN)
    heat_map.save_plan_map(plan, tmp_path / "e.png")
    assert (tmp_path / "d.png").read_bytes() != (tmp_path / "e.png").read_bytes()
