"""Runs the command from config to report, on the small teacher with short documents."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from hydrahead_jax.config import NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection import HeadScores
from tests.root import ROOT
from tests.toy_config import toy_config
from tests.train.reports.look import figures_of
from train.__main__ import main
from train.files.progress import Progress
from train.select import command as select_module
from train.select.config import SelectConfig
from train.select.inputs import check_model

PICTURES = ("receiver", "fused", "chosen", "knock_out", "stability", "quality")
SETTINGS = (
    "settings.length=48",
    "settings.needles=2",
    "settings.pairs=6",
    "settings.senders=none",
    "settings.batch=6",
    "knock_out.counts=(0, 1)",
    "knock_out.draws=1",
    "knock_out.documents=4",
    "knock_out.batch=4",
    "stability.lengths=(8,)",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Makes a folder with text."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "text").mkdir()
    (folder / "text/words.txt").write_text("some words of plain text and some more of it\n" * 40)
    return folder


def command(work: Path, run: str, *assignments: str) -> list[str]:
    where = (f"run={work / run}", f"text.folder={work / 'text'}")
    return ["select", str(ROOT / "configs/tiny_select.py"), *where, *SETTINGS, *assignments]


def select(work: Path, run: str, *assignments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return main(command(work, run, *assignments))


@pytest.fixture(scope="module")
def finished(work) -> Path:
    """Returns the folder of a selection that was left alone."""
    assert select(work, "finished") == 0
    return work / "finished"


def test_everything_is_in_the_folder(finished):
    assert HeadScores.load_csv(finished / "head_scores.csv").score_LN.shape == (4, 8)
    assert HeadPlan.load(finished / "head_plan.json").count == 8
    assert len((finished / "probes.jsonl").read_text().splitlines()) == 7 * 6
    read = lambda name: json.loads((finished / name).read_text(), parse_constant=pytest.fail)
    assert read("config.json")["config"]["settings"]["length"] == 48
    assert read("selection.json")["heads"] == 32
    knock_out, stability = read("knock_out.json"), read("stability.json")
    assert {len(points) for points in knock_out["curves"].values()} == {2}
    assert len(knock_out["curves"]) == 3
    assert [row["pairs"] for row in stability["over_pairs"]] == [1, 2, 3, 6]
    assert "8 tokens leave no room" in stability["lengths_left_out"]["8"]


def test_the_page_holds_every_picture_and_the_numbers(finished):
    page = (finished / "report.html").read_text()
    assert "http" not in page and "<script" not in page
    files = [(finished / f"{name}.png").read_bytes() for name in PICTURES]
    assert [data for _, data in figures_of(page)] == files
    scores = HeadScores.load_csv(finished / "head_scores.csv")
    for number in (*scores.clean_P, *scores.corrupted_P):
        assert f"<td>{number:.2f}</td>" in page
    assert f"<td>{scores.receiver.clamped_PLN.mean(axis=0).max():.3f}</td>" in page
    assert "Senders were not measured." in page
    assert "8 tokens leave no room" in page
    assert "settings.length=48" in page and "knock_out.counts=(0, 1)" in page


class Killed(Exception):
    pass


def test_a_selection_that_is_killed_twice_continues_and_comes_to_the_same(
    work, finished, monkeypatch
):
    class Deadly(Progress):
        stage, last = "", 0

        def __call__(self, name: str, done: int, total: int) -> None:
            if name == self.stage and done > self.last:
                raise Killed

    run, times = work / "killed", {}
    for Deadly.stage, Deadly.last in (("receivers", 12), ("knock-out", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(select_module, "Progress", Deadly)
            with pytest.raises(Killed):
                select(work, run.name)
        times |= {path: path.stat().st_mtime_ns for path in (run / "pairs").rglob("*.npz")}
    assert not (run / "report.html").exists()
    points = json.loads((run / "knock_out.json").read_text())["curves"]
    assert sum(map(len, points.values())) == 3
    assert select(work, run.name) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times and len(times) == 7
    for name in ("head_scores.csv", "head_plan.json", "knock_out.json", "stability.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["ratio=3"], "ratio '3' must read"),
        (["ratio=None"], "budget"),
        (["strategy=best"], "strategy 'best' must be one of"),
        (["tensor_multiple=3"], "multiple"),
        (["kv_bytes=100"], "KV heads"),
        (["settings.pairs=5"], "pairs=5 must be at least 6"),
        (["settings.length=300"], "300 tokens"),
        (["knock_out.counts=(0, 33)"], "must be at most 32"),
        (["knock_out.needles=40"], "do not fit"),
        (["stability.lengths=(300,)"], "documents of 300 tokens"),
        (["general=('none.jsonl',)"], "none.jsonl"),
        (["devices=99"], "devices=99 must be 1 to"),
        (["dtype=float16"], "'float16' must be one of"),
        (["teacher=nowhere"], "nowhere"),
    ],
)
def test_bad_settings_are_one_sentence_and_no_folder(work, capsys, assignments, message):
    assert select(work, "refused", *assignments) == 1
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert not (work / "refused/pairs/receivers").exists()


def test_a_model_of_windows_alone_has_nothing_to_score():
    slots_only = toy_config(mixers=(NativeHybrid(window=3),) * 2)
    with pytest.raises(UserError, match="no head of this model is softmax attention over all tok"):
        check_model(SelectConfig(run="", teacher=""), slots_only)


def test_a_full_disk_is_one_sentence(work, finished, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", str(finished / "selection.json"))

    monkeypatch.setattr(select_module, "write_json", full)
    assert select(work, "finished") == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "selection.json cannot be written: No space left on device" in error


def test_another_selection_is_not_overwritten(work, finished, capsys):
    assert select(work, "finished", "seed=1") == 1
    assert "config.seed is 0 there and 1 here" in capsys.readouterr().err


def test_progress_is_lines_without_a_terminal_and_bars_with_one():
    lines, screen = [], io.StringIO()
    with Progress(lines.append, Console(file=io.StringIO())) as progress:
        for done in (1, 2, 3, 3):
            progress("receivers", done, 3)
        progress("knock-out", 1, 1, "loss 0.5")
    assert lines == ["receivers: 3 of 3", "knock-out: 1 of 1, loss 0.5"]
    with Progress(lines.append, Console(file=screen, force_terminal=True, width=80)) as progress:
        progress("receivers", 1, 3)
        progress("knock-out", 3, 3)
    assert "receivers" in screen.getvalue() and "3 of 3" in screen.getvalue() and len(lines) == 2
