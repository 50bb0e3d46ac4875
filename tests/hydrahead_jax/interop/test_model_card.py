"""Checks the card of an exported model: its header, and that its code runs unchanged."""

import re

import pytest

from hydrahead_jax.interop import export_torch, torch_export
from hydrahead_jax.interop.card_header import card_header
from tests.hydrahead_jax.interop import toy

CARD = """\
---
license: apache-2.0
license_link: https://example.com/LICENSE
pipeline_tag: text-generation
base_model:
- someone/else
---
license: not this one
"""


def test_license_of_the_teachers_card_and_its_name(tmp_path):
    teacher = tmp_path / "Qwen3-1.7B"
    assert card_header(None) == ""
    assert card_header(teacher) == "base_model: Qwen3-1.7B\n"
    teacher.mkdir()
    (teacher / "README.md").write_text(CARD)
    assert card_header(teacher) == (
        "license: apache-2.0\nlicense_link: https://example.com/LICENSE\nbase_model: Qwen3-1.7B\n"
    )
    (teacher / "config.json").write_text('{"_name_or_path": "Qwen/Qwen3-1.7B"}')
    assert card_header(teacher).endswith("base_model: Qwen/Qwen3-1.7B\n")
    (teacher / "config.json").write_text('{"_name_or_path": "/data/qwen"}')
    assert card_header(teacher).endswith("base_model: Qwen3-1.7B\n")


@pytest.mark.parametrize("text", ["", "# A model\nlicense: mit\n", "---\nlicense: mit\n"])
def test_no_license_is_made_up(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert "license:" not in card_header(tmp_path)


def test_name_on_the_hub_from_its_cache(tmp_path):
    snapshot = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "0a1b"
    assert card_header(snapshot) == "base_model: Qwen/Qwen3-0.6B\n"


def test_the_cards_code_runs_without_a_question(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="needs PyTorch: the 3.11 cell")
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks on the terminal"))
    tokenizer = toy.write_tokenizer(tmp_path / "tokenizer")
    export_torch(tmp_path / "out", toy.MIXED, toy.random_params(toy.MIXED), tokenizer)
    card = (tmp_path / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    exec(code, {"FOLDER": str(tmp_path / "out")})
    assert re.search(r"w\d+", capsys.readouterr().out)
