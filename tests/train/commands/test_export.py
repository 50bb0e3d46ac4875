"""Checks `python -m train export`: options, and the teacher's files that must not be lost."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import load_hf, torch_export
from hydrahead_jax.interop.tokenizer_files import tokenizer_files
from tests.train import small
from train.__main__ import main
from train.commands.export import export_run, parse_size
from train.commands.transfer import transfer
from train.files.run_folder import TOKENIZER

TEACHERS_FILES = {
    "chat_template.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}\r\n",
    "chat_template.json": '{"chat_template": "x"}',
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "generation_config.json": '{"do_sample": true, "temperature": 0.6, "eos_token_id": [5, 0]}',
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "#version: 0.2\n",
    "tokenizer.model": "\0",
}


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: False)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Makes a finished run of one step, whose teacher has all files that a teacher may have."""
    work = tmp_path_factory.mktemp("work")
    config = small.transfer_config(work, steps=1, checkpoint_every=1)
    for name, text in TEACHERS_FILES.items():
        path = work / "teacher" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    card = "---\nlibrary_name: transformers\nlicense: other\nlicense_name: small\nlanguage:\n- en\n"
    (work / "teacher" / "README.md").write_text(card + "---\n# A teacher\n")
    transfer(dataclasses.replace(config, stages=config.stages[2:]))
    return work


def test_run_and_export_keep_the_teachers_files_byte_for_byte(work, tmp_path):
    teacher = work / "teacher"
    export_run(work / "run", tmp_path / "out")
    names = {str(name) for name in tokenizer_files(teacher)}
    assert names == {*TEACHERS_FILES, "tokenizer.json", "tokenizer_config.json"}
    for name in names:
        for folder in (work / "run" / TOKENIZER, tmp_path / "out"):
            assert (folder / name).read_bytes() == (teacher / name).read_bytes()


def test_all_files_have_the_mode_of_a_plain_one(work, tmp_path):
    (work / "teacher" / "vocab.json").chmod(0o600)
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    export_run(work / "run", tmp_path / "out", shard_bytes=4096)
    mode = lambda path: path.stat().st_mode & 0o777
    for path in ((tmp_path / "out"), *(tmp_path / "out").rglob("*")):
        assert mode(path) == mode(tmp_path / ("folder" if path.is_dir() else "plain")), path


def test_a_run_made_before_takes_from_its_teacher_what_it_lacks(work, tmp_path):
    run, said = tmp_path / "run", []
    shutil.copytree(work / "run", run)
    shutil.rmtree(run / TOKENIZER / "additional_chat_templates")
    for name in ("chat_template.jinja", "generation_config.json"):
        (run / TOKENIZER / name).unlink()
    export_run(run, tmp_path / "out", said.append)
    for name in TEACHERS_FILES:
        assert (tmp_path / "out" / name).read_bytes() == (work / "teacher" / name).read_bytes()
    assert len(said) == 1
    (run / TOKENIZER / "tokenizer.json").write_text(
        (work / "teacher" / "tokenizer.json").read_text() + "\n"
    )
    export_run(run, tmp_path / "other", said.append)
    assert said[1].startswith("warning: the run keeps no generation_config.json, and ")
    assert not (tmp_path / "other" / "chat_template.jinja").exists()
    made = json.loads((tmp_path / "other" / "generation_config.json").read_text())
    assert made == {"do_sample": False, "eos_token_id": 0, "pad_token_id": 0}


def test_the_card_has_the_teachers_license_and_name(work, tmp_path):
    export_run(work / "run", tmp_path / "out")
    header = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert "license: other\nlicense_name: small\nbase_model: teacher\n" in header
    assert "language" not in header


def test_options_of_the_command(work, tmp_path, capsys):
    command = ["export", str(work / "run"), "--out", str(tmp_path / "out"), "--no-check"]
    options = ["--dtype", "bfloat16", "--shard-size", "4KB", "--kv-cache", "fp8"]
    assert main([*command, *options]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["kv_cache"] == "fp8"
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    config, params = load_hf(tmp_path / "out")
    assert config == small.STUDENT
    assert params["w_embed_VD"].dtype == jnp.bfloat16
    assert params["layers"][0]["mixer"]["gdn"]["a_log_N"].dtype == jnp.float32
    capsys.readouterr()
    for option, value, reason in (
        ("--dtype", "float8", "dtype is 'float8'; it must be float32 or bfloat16"),
        (
            "--shard-size",
            "big",
            "'big' is not a size; give a number and a unit, such as 5GB or 500MB",
        ),
        (
            "--kv-cache",
            "int3",
            "KV cache: there is no format 'int3'; use one of "
            "bf16, fp8, ultraquant, ultraquant-tuned, turboquant4, int4",
        ),
    ):
        out = tmp_path / f"out{option}"
        assert main([*command[:2], "--out", str(out), option, value]) == 1
        assert capsys.readouterr().err == f"error: {reason}\n"
        assert not out.exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5_000_000_000),
        ("5 GB", 5_000_000_000),
        ("500MB", 500_000_000),
        ("5GiB", 5 * 2**30),
        ("1.5kb", 1500),
        ("2 TiB", 2**41),
        ("700 B", 700),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0GB", "0.1B", "-5GB", "5", "GB", "5XB", "5GBs", "nan GB", "1e3GB"]
)
def test_no_sizes(text):
    with pytest.raises(UserError, match="is not a size"):
        parse_size(text)
