"""`make demo`, with fewer steps and documents: everything that the report promises is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the demo compares with PyTorch: run `make test`")

ROOT = Path(__file__).parents[2]
SHORTER = [
    *(f"comparison.transfer.stages.{stage}.steps=2" for stage in ("align", "distill", "finetune")),
    "comparison.selection.pairs=6",
    "comparison.selection.senders=none",
    "comparison.evaluation.lengths=(256,)",
    "comparison.evaluation.documents=8",
    "comparison.evaluation.batch=8",
    "comparison.evaluation.text_windows=4",
    "knock_out.counts=(0, 1)",
    "knock_out.documents=8",
    "knock_out.draws=1",
]


def run_demo(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "train", "demo", "configs/demo.py", *SHORTER],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The demo's folder, and what it printed."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder, run_demo(folder)


def test_the_report_has_every_promised_field(demo):
    report = json.loads((demo[0] / "runs/demo/report.json").read_text())
    assert set(report) == {
        "teacher",
        "students",
        "export_max_abs_logit_difference",
        "seconds",
        "versions",
    }
    assert list(report["students"]) == [
        "global-interp-3:1",
        "global-random-3:1",
        "random-without-receivers-3:1",
        "global-interp-7:1",
    ]
    for model in (report["teacher"], *report["students"].values()):
        for task in ("niah_single", "niah_multikey"):
            assert list(model[task]) == ["256"] and 0 <= model[task]["256"] <= 1
        assert model["text_loss"] > 0
        assert model["cache_bytes_at_32k"] > 0
    students = report["students"]
    assert [s["fa_heads"] for s in students.values()] == [8, 8, 8, 4]
    assert students["random-without-receivers-3:1"]["receivers_kept"] == 0
    assert students["global-interp-3:1"]["receivers_kept"] > 0
    assert report["teacher"]["niah_single"]["256"] > 0.9


def test_the_export_was_compared_with_pytorch(demo):
    report = json.loads((demo[0] / "runs/demo/report.json").read_text())
    assert report["export_max_abs_logit_difference"] <= 1e-4


def test_the_page_and_the_place_of_it_are_there(demo):
    folder, printed = demo
    page = (folder / "runs/demo/report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "report.html" in printed and "global-interp-7:1" in printed


def test_a_repeated_demo_repeats_no_training(demo):
    folder, _ = demo
    metrics = sorted((folder / "runs/demo/students").glob("*/run/metrics.jsonl"))
    before = [path.read_text() for path in metrics]
    run_demo(folder)
    assert len(metrics) == 4 and [path.read_text() for path in metrics] == before
