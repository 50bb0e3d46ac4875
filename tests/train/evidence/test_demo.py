"""Runs `make demo` with fewer steps and documents, and checks all that the report promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import quick
from tests.root import ROOT

pytest.importorskip("torch", reason="the demo compares with PyTorch: run `make test`")

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


# Runs `python -m train` with a PyTorch that computes something else.
BROKEN = """
import sys
from hydrahead_jax.interop import torch_export
from hydrahead_jax.interop.parity import Parity
from train.__main__ import main
torch_export.check_parity = lambda *_, **__: Parity(0.5, False, 64)
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def run_demo(folder: Path, *python: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *python, "demo", "configs/demo.py", *SHORTER],
        cwd=folder,
        env=quick.environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """Returns the demo's folder, and what it printed."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    done = run_demo(folder, "-m", "train")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder, done.stdout


def test_the_report_has_every_promised_field(demo):
    report = json.loads((demo[0] / "runs/demo/report.json").read_text())
    assert set(report) == {
        "teacher",
        "students",
        "export_max_abs_logit_difference",
        "seconds",
        "versions",
    }
    assert list(report["students"]) == ["global-interp-3:1", "random-without-receivers-3:1"]
    for model in (report["teacher"], *report["students"].values()):
        for task in ("niah_single", "niah_multikey"):
            assert list(model[task]) == ["256"] and 0 <= model[task]["256"] <= 1
        assert model["text_loss"] > 0
        assert model["cache_bytes_at_32k"] > 0
    students = report["students"]
    assert [s["fa_heads"] for s in students.values()] == [8, 8]
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
    assert "report.html" in printed and "random-without-receivers-3:1" in printed


def test_a_repeated_demo_trains_nothing_and_a_failing_export_costs_no_report(demo):
    folder, _ = demo
    (folder / "broken.py").write_text(BROKEN)
    before = json.loads((folder / "runs/demo/report.json").read_text())
    metrics = sorted((folder / "runs/demo/students").glob("*/run/metrics.jsonl"))
    lines = [path.read_text() for path in metrics]
    (folder / "runs/demo/report.html").unlink()
    done = run_demo(folder, "broken.py")
    assert done.returncode == 1
    assert len(metrics) == 2 and [path.read_text() for path in metrics] == lines
    assert "random-without-receivers-3:1" in done.stdout and "report.html" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: the export failed: ")
    assert "differ by at most 5.0e-01" in done.stderr
    report = json.loads((folder / "runs/demo/report.json").read_text())
    assert report["students"] == before["students"]
    assert report["export_max_abs_logit_difference"] is None
    assert "NOT the same 64 tokens" in report["export_failure"]
    assert "The export failed: " in (folder / "runs/demo/report.html").read_text()
