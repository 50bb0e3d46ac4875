"""Checks that files are valid JSON, and complete."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.json_file import check_target, dumps, plain, read_json, replacing, write_json
from hydrahead_jax.resumable import open_folder
from hydrahead_jax.selection.effects.store import Store
from train.commands.evaluate import evaluate_saved
from train.run.metrics import MetricsLog

NAN, INF = math.nan, math.inf


def strict(text: str):
    """Parses JSON as strictly as other languages do."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    value = {"a": [NAN, 1.5, (INF, -INF)], "b": {"c": np.float64("nan")}, "d": "NaN", "e": None}
    expected = {"a": [None, 1.5, [None, None]], "b": {"c": None}, "d": "NaN", "e": None}
    assert strict(dumps(value)) == plain(value) == expected
    write_json(tmp_path / "a.json", value)
    assert strict((tmp_path / "a.json").read_text()) == read_json(tmp_path / "a.json") == expected


def test_files_with_nan_of_older_versions_are_read(tmp_path):
    (tmp_path / "old.json").write_text('{"a": NaN, "b": [Infinity, -Infinity]}')
    found = read_json(tmp_path / "old.json")
    assert math.isnan(found["a"]) and found["b"] == [INF, -INF]


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000])
def test_what_is_not_json_is_one_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json cannot be read: No such file"):
        read_json(tmp_path / "b.json")


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


WRITERS = {
    "write_json": lambda path: write_json(path, {}),
    "HeadPlan.save": HeadPlan(fa_heads=((1,),), query_heads=4, kv_heads=2, strategy="x").save,
    "Store": lambda path: Store(path.parent, {}).result("x", lambda: {"x": np.zeros(1)}),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_mode_bits_are_those_of_open(tmp_path, writer):
    old = os.umask(0o027)
    try:
        writer(tmp_path / "a.json")
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o640}


def test_a_file_that_cannot_be_is_refused_by_the_commands_that_write_it(tmp_path):
    check_target(tmp_path / "report.json")
    folder, below = tmp_path / "reports", tmp_path / "none" / "report.json"
    folder.mkdir()
    for path, why in ((folder, "is a folder; name a file in it"), (below, "cannot be written: ")):
        for check in (check_target, lambda path: evaluate_saved(tmp_path, out=path)):
            with pytest.raises(UserError) as caught:
                check(path)
            assert str(caught.value).startswith(f"{path} {why}")


def test_mode_bits_and_links_of_an_old_file_stay(tmp_path):
    (tmp_path / "real.json").write_text("1")
    (tmp_path / "real.json").chmod(0o600)
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", 2)
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(tmp_path / "real.json") == 2
    assert (tmp_path / "real.json").stat().st_mode & 0o777 == 0o600


def test_a_device_is_written_to_and_not_replaced():
    write_json(Path("/dev/null"), 1)
    assert not os.path.isfile("/dev/null")


def test_a_loss_that_is_not_finite_is_null_in_the_metrics(tmp_path):
    log = MetricsLog(tmp_path, "metrics.jsonl", 0)
    for step, loss in enumerate((2.0, NAN, 1.0), start=1):
        log.write(step, "align", {"loss": loss})
    log.close()
    lines = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [2.0, None, 1.0]


def test_a_folder_that_a_killed_process_began_is_new_and_one_with_more_is_not(tmp_path):
    how = {"holds": "run", "advice": "choose another folder"}
    (tmp_path / "config.json.partial").write_text("{")
    assert not open_folder(tmp_path, "config.json", {"seed": 1}, **how)
    assert open_folder(tmp_path, "config.json", {"seed": 1}, **how)
    with pytest.raises(UserError, match="holds a different run: seed is 1 there and 2 here"):
        open_folder(tmp_path, "config.json", {"seed": 2}, **how)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json.partial").write_text("{")
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and holds no run; choose another folder"):
        open_folder(tmp_path / "other", "config.json", {"seed": 1}, **how)
