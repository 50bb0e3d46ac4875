"""Runs `python -m train kv-report` on a tiny teacher, again, and with what it must refuse."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from hydrahead_jax.cache import layer_formats
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import save_hf_teacher
from hydrahead_jax.kv_quality import through_cache, vectors
from hydrahead_jax.models import init_params
from tests.train import small
from tests.train.small import write_texts
from train.commands.kv_report import FORMATS, REPORT, kv_report
from train.data.tokenizer import save_tokenizer
from train.reports.kv_page import PAGE, PICTURE

pytestmark = pytest.mark.only_in("test", "generates and decodes as evaluations do")

TEACHER = dataclasses.replace(
    small.TEACHER, head_dim=32, mixers=small.TEACHER.mixers[:1], max_length=24
)
SETTINGS = (
    'formats=("ultraquant",)',
    "c_grid=(0.156,)",  # so that both formats are the same compiled programs
    "calibration=1",
    "windows=1",
    "needle_lengths=(32,)",
    "documents=1",
    "needles=2",
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kv_report") / "teacher"
    params = init_params(TEACHER, jax.random.key(1))
    save_hf_teacher(folder, TEACHER, params, jnp.float32)
    save_tokenizer(small.tokenizer(), folder, TEACHER.max_length)
    return folder


def run(teacher, *changes, settings=SETTINGS, out="out") -> dict:
    text = write_texts(teacher.parent / "text")
    return kv_report(teacher, (*settings, *changes), text, teacher.parent / out, say=print)


def test_a_report_is_written_and_continued(teacher, monkeypatch, capsys):
    report, out = run(teacher), teacher.parent / "out"
    said = capsys.readouterr().out
    assert json.loads((out / REPORT).read_text())["formats"] == report["formats"]
    assert list(report["formats"]) == ["ultraquant", "ultraquant-by-layer"]
    for of in report["formats"].values():
        assert of["bytes_a_token"] == 2 * 2 * 17 and of["bits"] == 4.25
        assert of["kl"] > 0 and of["niah_multikey"] == {"32": 0.0}
    page = (out / PAGE).read_text()
    assert "| ultraquant-by-layer | 4.25 | 68 |" in page and "UltraQuant's c by layer" in page
    assert "above 24 more than the model was trained for" in page
    assert "| ultraquant | 4.25 | 68 |" in said and "needles: 4 of 4" in said
    assert (out / PICTURE).is_file()
    (chosen,) = layer_formats(TEACHER, str(out / FORMATS))
    (tuned,) = report["tuned"]
    assert (chosen.keys.c, chosen.values.c) == (tuned["keys"]["c"], tuned["values"]["c"])
    for module, name in (
        (through_cache, "next_token"),
        (through_cache, "niah_accuracy"),
        (vectors, "attention_inputs"),
    ):
        monkeypatch.setattr(module, name, None)
    assert run(teacher) == report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("documents=2",),
            r"out holds a different report: settings\.documents is 1 there",
        ),
        (("needle_lengths=(6,)",), "niah_single: 1 needles and 1 queries do not fit"),
        (("length=100000",), "the text has .* tokens and a window needs 100000"),
        (("windows=0",), "windows=0 must be 1 or more"),
        (('formats=("int3",)',), "there is no format 'int3'"),
        (("nosuch=1",), "nosuch"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(teacher, changes, message, monkeypatch):
    run_before = teacher.parent / "out"
    assert run_before.is_dir()
    monkeypatch.setattr(vectors, "attention_inputs", None)
    with pytest.raises(UserError, match=message):
        run(teacher, *changes)


def test_a_folder_that_cannot_hold_the_report_is_refused(teacher):
    with pytest.raises(UserError, match=r"not the folder of a run, .* with --out"):
        kv_report(teacher, SETTINGS)
    with pytest.raises(UserError, match=r"teacher exists and holds no report; .* with --out"):
        run(teacher, out="teacher")


def test_a_head_dimension_that_a_format_does_not_take_is_refused(tmp_path):
    small.write_teacher(tmp_path / "teacher")
    with pytest.raises(UserError, match="do not divide a head dimension of 8; use another format"):
        run(tmp_path / "teacher")
