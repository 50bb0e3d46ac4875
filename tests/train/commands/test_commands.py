"""Checks each command's usage, and runs commands that the README does not show."""

import dataclasses
import re
from pathlib import Path

import pytest

from configs import nha_340m
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import torch_export
from tests.root import ROOT
from tests.train import small
from tests.train.data import prepared_text
from train.__main__ import main
from train.command_line import COMMANDS, CONFIGS
from train.commands import pretrain
from train.commands.pretrain import Scales


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m train {command}" in re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("command", CONFIGS)
def test_fields_are_listed(command, capsys):
    assert main([command, "--fields"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines()[1:] if line[0] != " "]
    keys = [line.partition(":")[0] for line in lines]
    assert len(keys) > 5 and all(re.fullmatch(r"[\w.]+", key) for key in keys)
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--fields" in capsys.readouterr().out


def test_the_list_of_fields_says_type_default_and_meaning(capsys):
    main(["transfer", "--fields"])
    said = capsys.readouterr().out
    for text in (
        "run: a string; needed\n    folder of checkpoints, metrics and the student\n",
        "stages.NAME.loss: one of 'next_token', 'align', 'distill'; needed\n",
        "stages.NAME.optim.learning_rate: a number; needed, in AdamW\n    learning rate at the ",
        "stages.NAME.optim.learning_rate: a number; 0.02, in Muon\n",
        "stages.NAME.data.prepared.INDEX.weight: a number; 1.0\n",
        "running.wandb: a string or None; None\n",
    ):
        assert text in said
    assert "PreparedText" in said and "running: " not in said


def test_prepare(tmp_path, capsys):
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(20))
    tokenizer = ROOT / "configs/assets/tiny_teacher"
    options = ["--tokenizer", str(tokenizer), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["prepare", str(source), *options]) == 0
    assert "holds 20 documents" in capsys.readouterr().out


def write_config(folder: Path, made: str) -> str:
    """Writes a config file whose config() returns the expression `made`."""
    path = folder / "experiment.py"
    path.write_text(
        "import dataclasses\n"
        "from pathlib import Path\n\n"
        "from hydrahead_jax.config import FullAttention, NativeHybrid\n"
        "from hydrahead_jax.evals import EvalSettings\n"
        "from tests.train import small\n"
        "from tests.train.teacher import test_teacher_cache\n"
        "from train.commands.pretrain import PretrainConfig, Scales, Target\n\n"
        f"folder = Path({str(folder)!r})\n\n\n"
        f"def config():\n    return {made}\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("mixer", "scales", "name"),
    [
        ("FullAttention()", "", "teacher"),
        ("NativeHybrid(window=3, qk_norm=False, output_norm=True)", "qk_gain=1.0", "model"),
    ],
)
def test_pretrain(tmp_path, capsys, monkeypatch, mixer, scales, name):
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: False)
    made = f"""PretrainConfig(
        run=str(folder / "run"),
        out=str(folder / "teacher"),
        model=dataclasses.replace(small.TEACHER, vocab=290, mixers=({mixer},) * 2),
        keys=8,
        values=8,
        text=small.write_texts(folder / "text"),
        evaluation_text=small.write_texts(folder / "text"),
        stages=small.stages(small.write_texts(folder / "text"), steps=1)[2:],
        evaluation=EvalSettings(lengths=(48,), documents=2, batch=2, text_windows=1),
        target=Target(niah_single=0.0, niah_multikey=0.0),
        scales=Scales({scales}),
    )"""
    assert main(["pretrain", write_config(tmp_path, made)]) == 0
    assert f"saved the {name} to {tmp_path / 'teacher'}" in capsys.readouterr().out
    assert (tmp_path / "teacher/model.safetensors").is_file()


def test_a_gain_of_norms_that_are_not_there_is_refused():
    config = dataclasses.replace(nha_340m.config(), scales=Scales(qk_gain=1.5))
    with pytest.raises(UserError, match=r"scales\.qk_gain=1\.5 is a gain of the QK norm, .* to 1"):
        pretrain.check(config)


def test_cache_teacher(tmp_path):
    transfer = "small.transfer_config(folder)"
    path = write_config(
        tmp_path, f"test_teacher_cache.with_cache({transfer}, folder / 'cache', steps=1)"
    )
    assert main(["cache-teacher", path]) == 0
    assert list((tmp_path / "cache").rglob("*.arrayrecord"))


@pytest.mark.tpu_compiler
def test_plan(tmp_path, capsys):
    assert main(["plan", small.write_config(tmp_path), "--target", "v5e:1x1"]) == 0
    assert "fits" in capsys.readouterr().out
