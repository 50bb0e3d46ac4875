"""Checks that addresses are refused wherever a path is taken, and that paths are not."""

from pathlib import Path

import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.interop import export_torch, load_hf, read_config, save_hf_teacher
from hydrahead_jax.local_path import local_path
from hydrahead_jax.selection import HeadScores
from hydrahead_jax.selection.effects.store import Store
from hydrahead_jax.selection.probes.file import load_probes
from tests.hydrahead_jax.interop import toy
from tests.train import small
from train.__main__ import main
from train.data.text import TextSource, read_documents
from train.prepare.command import prepare
from train.run.saved_model import load_saved

SCHEMES = "gs s3 hf https http file az abfss dbfs hdfs GS r2 git+ssh".split()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_addresses_are_named_with_both_slashes(scheme):
    address = f"{scheme}://bucket/a b/c"
    for path in (address, Path(address), f" {address}", f"{scheme}:/bucket/a b/c"):
        with pytest.raises(UserError) as caught:
            local_path(path)
        assert str(caught.value).startswith(f"{address} is an address, and only files")
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("path", ["a", "a/b", "/a/b:c", "C:/x", "a:b", "~/x", "", "3:1"])
def test_paths_are_left_alone(path):
    assert local_path(path) == local_path(Path(path)) == Path(path)


LIBRARY_CALLS = {
    "load_hf": load_hf,
    "read_config": read_config,
    "load_saved": load_saved,
    "save_hf_teacher": lambda path: save_hf_teacher(path, toy.TEACHER, {}),
    "export_torch": lambda path: export_torch(path, toy.MIXED, {}, Path("tokenizer")),
    "export_torch, tokenizer": lambda path: export_torch(Path("out"), toy.MIXED, {}, path),
    "HeadPlan.load": HeadPlan.load,
    "HeadPlan.save": HeadPlan(fa_heads=((1,),), query_heads=4, kv_heads=2, strategy="test").save,
    "HeadScores.load_csv": HeadScores.load_csv,
    "load_probes": load_probes,
    "Store": lambda path: Store(path, {}),
    "read_documents": lambda path: read_documents(TextSource(folder=str(path))),
    "prepare": lambda path: prepare((Path("a"),), Path("t"), path, workers=1),
    "prepare, source": lambda path: prepare((path,), Path("t"), Path("out"), workers=1),
}


@pytest.mark.parametrize("call", LIBRARY_CALLS.values(), ids=LIBRARY_CALLS)
def test_library_calls_refuse_addresses(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/x is an address"):
        call(Path("gs://bucket/x"))
    assert not list(tmp_path.iterdir())


AT = "gs://bucket/x"
COMMANDS = [
    ["prepare", AT, "--tokenizer", "t", "--out", "out"],
    ["prepare", "text", "--tokenizer", AT, "--out", "out"],
    ["prepare", "text", AT, "--tokenizer", "t", "--out", "out"],
    ["prepare", "text", "--tokenizer", "t", "--out", AT],
    ["evaluate", AT],
    ["evaluate", "run", "--text", AT],
    ["evaluate", "run", "--out", AT],
    ["export", AT, "--out", "out"],
    ["export", "run", "--out", AT],
    ["plan", "experiment.py", "--json", AT],
    *([command, AT] for command in ("pretrain", "select", "transfer", "plan", "demo", "evidence")),
    *(
        [command, "experiment.py", f"{key}={AT}"]
        for command in ("transfer", "cache-teacher", "plan")
        for key in ("run", "teacher", "head_plan", "stages.finetune.data.text.folder")
    ),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_refuse_addresses(arguments, tmp_path, monkeypatch, capsys):
    small.write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert f"{AT} is an address" in error
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == before
