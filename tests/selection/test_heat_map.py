import struct

import numpy as np
import pytest

from hydrahead_jax.head_plan import HeadPlan

heat_map = pytest.importorskip(
    "hydrahead_jax.selection.heat_map", reason="matplotlib, of the train extra, is missing"
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


def test_knock_out_curve_is_a_png(tmp_path):
    path = tmp_path / "curve.png"
    heat_map.save_knock_out_curve([0, 1, 2, 4], np.eye(4)[0], np.ones((3, 4)), path)
    assert _size(path) == heat_map.KNOCK_OUT_SIZE
