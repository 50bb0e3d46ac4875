import json

import jax
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.selection import SelectionSettings, select
from hydrahead_jax.selection.effects.store import Store

SETTINGS = SelectionSettings(length=64, needles=6, batch=4, senders="none")


class Stopped(Exception):
    pass


def test_a_result_is_computed_once_and_a_damaged_one_again(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x_B": np.arange(3.0)}

    store = Store(tmp_path / "pairs", {"model": "a"})
    for _ in range(2):
        np.testing.assert_array_equal(store.result("stage/probe/0000", compute)["x_B"], [0, 1, 2])
    assert len(calls) == 1
    path = tmp_path / "pairs/stage/probe/0000.npz"
    for damage in (path.read_bytes()[:40], b"", path.read_bytes()[:-30]):
        path.write_bytes(damage)
        store.result("stage/probe/0000", compute)
    assert len(calls) == 4
    Store(None, {}).result("stage/probe/0000", compute)
    assert len(calls) == 5


def test_another_selection_in_the_folder_is_a_user_error(tmp_path):
    Store(tmp_path, {"pairs": "abc"})
    Store(tmp_path, {"pairs": "abc"})
    with pytest.raises(UserError, match="holds a different set of scores: "):
        Store(tmp_path, {"pairs": "abd"})


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file/pairs", {})
    store = Store(tmp_path / "pairs", {})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="No space left on device; what was scored before is saved"):
        store.result("a/0000", lambda: {"x": np.ones(1)})
    assert list((tmp_path / "pairs").rglob("*.npz")) == []


def test_a_selection_goes_on_where_it_stopped(tmp_path, planted_params, scored):
    whole = scored(SETTINGS)

    def stop(stage, done, total):
        if done == 24:
            raise Stopped

    with pytest.raises(Stopped):
        scored(SETTINGS, store=tmp_path / "pairs", progress=stop)
    kept = {path: path.read_bytes() for path in (tmp_path / "pairs").rglob("*.npz")}
    assert len(kept) == 6
    resumed = scored(SETTINGS, store=tmp_path / "pairs")
    assert all(path.read_bytes() == data for path, data in kept.items())
    for name in ("whole.csv", "resumed.csv"):
        {"whole.csv": whole, "resumed.csv": resumed}[name].scores.save_csv(tmp_path / name)
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "resumed.csv").read_bytes()
    inputs = json.loads((tmp_path / "pairs/inputs.json").read_text())
    assert inputs["settings"]["pairs"] == 8 and inputs["devices"] == 1
    louder = jax.tree.map(lambda x: x, planted_params)
    louder["layers"][1]["mlp"]["w_up_DF"] *= 2
    with pytest.raises(UserError, match="holds a different set of scores"):
        config, _, *text = scored.args
        select(config, louder, *text, SETTINGS, store=tmp_path / "pairs")
