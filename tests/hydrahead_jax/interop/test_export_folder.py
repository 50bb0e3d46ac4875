"""Checks an export's files, with or without PyTorch: all or none, never over another's."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import export_torch, load_hf, torch_export, torch_model
from tests.hydrahead_jax.interop import toy

CODE = {path.name for path in Path(torch_model.__file__).parent.glob("*_hydrahead.py")}


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: False)


@pytest.fixture(scope="module")
def params():
    return toy.random_params(toy.MIXED)


@pytest.fixture
def tokenizer(tmp_path):
    return toy.write_tokenizer(tmp_path / "tokenizer")


def test_everything_is_there_and_can_be_read_back(tmp_path, params, tokenizer):
    folder = tmp_path / "deep" / "export"
    report = export_torch(folder, toy.MIXED, params, tokenizer, card={"Base model": "toy"})
    assert {path.name for path in folder.iterdir()} == CODE | {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["export"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tokenizer / name).read_bytes()
    config, loaded = load_hf(folder)
    assert config == toy.MIXED
    assert toy.same_tree(loaded, params)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"do_sample": False, "eos_token_id": 96}
    assert report.max_abs_logit_difference is None
    assert "not compared with PyTorch, because torch and transformers" in str(report)


def test_card_says_what_the_model_is(tmp_path, params, tokenizer):
    export_torch(tmp_path / "out", toy.MIXED, params, tokenizer, card={"Base model": "toy/teacher"})
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "| Base model | toy/teacher |",
        "| Softmax heads | 6 of 12 (50%) |",
        "| 0 | 0, 3 | 0, 1 |",
        "| 1 | none | none |",
        f"| 32768 | {cache_bytes(toy.MIXED, 32768):,} |",
        "fusion='scale'",
        "vLLM",
    ):
        assert line in card


def test_generation_config_of_the_teacher_is_kept(tmp_path, params, tokenizer):
    (tokenizer / "generation_config.json").write_text('{"temperature":0.6}')
    export_torch(tmp_path / "out", toy.MIXED, params, tokenizer)
    kept = (tmp_path / "out" / "generation_config.json").read_text()
    assert kept == '{"temperature":0.6}'


def test_earlier_export_is_replaced(tmp_path, params, tokenizer):
    folder = tmp_path / "out"
    export_torch(folder, toy.MIXED, params, tokenizer, shard_bytes=8000)
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    export_torch(folder, toy.MIXED, params, tokenizer, dtype=jnp.bfloat16)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert load_hf(folder)[1]["w_embed_VD"].dtype == jnp.bfloat16
    assert {path.name for path in tmp_path.iterdir()} == {"out", "tokenizer"}


def test_empty_folder_is_used(tmp_path, params, tokenizer):
    (tmp_path / "out").mkdir()
    export_torch(tmp_path / "out", toy.MIXED, params, tokenizer)
    assert load_hf(tmp_path / "out")[0] == toy.MIXED


@pytest.mark.parametrize("foreign", ["notes.txt", "config.json"])
def test_folder_of_another_kind_is_refused(tmp_path, params, tokenizer, foreign):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / foreign).write_text('{"model_type": "qwen3"}')
    with pytest.raises(UserError, match="holds more than an earlier export"):
        export_torch(folder, toy.MIXED, params, tokenizer)
    assert [path.name for path in folder.iterdir()] == [foreign]


def test_export_with_a_users_file_in_it_is_refused(tmp_path, params, tokenizer):
    folder = tmp_path / "out"
    export_torch(folder, toy.MIXED, params, tokenizer)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="choose another folder"):
        export_torch(folder, toy.MIXED, params, tokenizer)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        export_torch(tmp_path / "file", toy.MIXED, params, tokenizer)


def test_failure_leaves_the_earlier_export(tmp_path, params, tokenizer, monkeypatch):
    folder = tmp_path / "out"
    export_torch(folder, toy.MIXED, params, tokenizer)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(torch_export, "model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_torch(folder, toy.MIXED, params, tokenizer, dtype=jnp.bfloat16)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "tokenizer"}


def test_teacher_and_missing_tokenizer_are_refused(tmp_path, params, tokenizer):
    with pytest.raises(UserError, match="no hybrid layer"):
        export_torch(tmp_path / "out", toy.TEACHER, toy.random_params(toy.TEACHER), tokenizer)
    (tokenizer / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        export_torch(tmp_path / "out", toy.MIXED, params, tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(tmp_path, params, tokenizer):
    path = tokenizer / "tokenizer.json"
    fields = json.loads(path.read_text())
    added = {"id": 500, "content": "<|more|>", "special": True, "normalized": False}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    path.write_text(json.dumps(fields | {"added_tokens": [*fields["added_tokens"], added]}))
    with pytest.raises(UserError, match=r"gives '<\|more\|>' the id 500, and the model knows 0 to"):
        export_torch(tmp_path / "out", toy.MIXED, params, tokenizer)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        export_torch(tmp_path / "out", toy.MIXED, params, tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, params, tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out cannot be written: "):
        export_torch(tmp_path / "file" / "out", toy.MIXED, params, tokenizer)


def test_a_link_to_an_earlier_export_stays_a_link(tmp_path, params, tokenizer):
    export_torch(tmp_path / "out", toy.MIXED, params, tokenizer)
    (tmp_path / "link").symlink_to("out")
    export_torch(tmp_path / "link", toy.MIXED, params, tokenizer, dtype=jnp.bfloat16)
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
