import json

import pytest

from tests.train.reports.look import figures_of
from train.evidence.evidence import summary
from train.reports import markdown
from train.reports.comparison_page import table_rows, write_report

PNG = bytes.fromhex("89504e470d0a1a0a")


def model(single: float, **more) -> dict:
    return {
        "niah_single": {"256": single, "512": 0.5},
        "niah_multikey": {"256": single / 2, "512": 0.0},
        "text_loss": 2.5,
        "fa_heads": 8,
        "kv_heads": 5,
        "cache_bytes_at_32k": 3 * 2**20,
        **more,
    }


@pytest.fixture
def report() -> dict:
    return {
        "teacher": model(1.0),
        "students": {"global-interp-3:1": model(0.98), "<random>": model(0.0)},
        "export_max_abs_logit_difference": 1.21e-5,
        "seconds": {"score heads": 12.3},
        "versions": {"jax": "0.10.2"},
    }


def test_the_table_has_a_row_for_each_model_and_a_column_for_each_length(report):
    header, rows = table_rows(report)
    assert [row[0] for row in rows] == ["teacher", "global-interp-3:1", "<random>"]
    assert all(len(row) == len(header) for row in rows)
    cells = dict(zip(header, rows[1], strict=True))
    assert cells["single 256"] == "98 %"
    assert cells["multi 256"] == "49 %"
    assert cells["cache 32K"] == "3.0 MiB"


def test_the_page_holds_everything_itself_and_escapes_names(report, tmp_path):
    pictures = {"heads & scores": tmp_path / "b.png", "a loss": tmp_path / "a.png"}
    for path in pictures.values():
        path.write_bytes(PNG + path.stem.encode())
    page = write_report(tmp_path, report, pictures).read_text()
    assert figures_of(page) == [("heads &amp; scores", PNG + b"b"), ("a loss", PNG + b"a")]
    assert "&lt;random&gt;" in page and "<random>" not in page
    assert "1.2e-05" in page
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_an_unchecked_export_is_said_to_be_unchecked(report, tmp_path):
    report["export_max_abs_logit_difference"] = None
    assert "was not compared" in write_report(tmp_path, report, {}).read_text()


def test_the_summary_gives_mean_and_range_over_teachers_and_draws():
    comparison = lambda singles: {
        "teacher": model(1.0),
        "students": {
            f"global-random-3:1 draw {i}": model(single, receivers_kept=i)
            for i, single in enumerate(singles)
        },
    }
    header, rows = summary({"a": comparison((0.0, 1.0)), "b": comparison((0.5, 0.5))})
    random = dict(zip(header, rows[1], strict=True))
    assert random["model"] == "global-random-3:1" and random["runs"] == "4"
    assert random["single 256"] == "50 (0 to 100)"
    assert random["receivers kept"] == "0, 1, 0, 1"
    lines = markdown.table(header, rows).splitlines()
    assert len(lines) == 4 and lines[1].count("---") == len(header)
