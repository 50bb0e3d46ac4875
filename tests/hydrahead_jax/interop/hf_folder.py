"""Changes Hugging Face folders, and checks how they are refused."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import load_hf

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"
ABSENT = object()


def edit(path: Path, change) -> None:
    """Writes what `change` returns of a JSON file, or what it has made of the fields."""
    fields = json.loads(path.read_text())
    fields = change(fields) or fields
    path.write_text(json.dumps(fields))


def edit_config(folder: Path, **changes) -> None:
    """Sets fields of config.json, or removes those that become ABSENT."""
    keep = lambda fields: {name: value for name, value in fields.items() if value is not ABSENT}
    edit(folder / "config.json", lambda config: keep(config | changes))


def edit_weights(folder: Path, change, file: str = SINGLE) -> None:
    weights = load_file(folder / file)
    save_file(change(weights) or weights, folder / file)


def refusal(folder: Path, read=load_hf) -> str:
    """Returns the sentence of a refusal, which is short and names the folder once."""
    with pytest.raises(UserError) as caught:
        read(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.count(str(folder)) == 1
    assert len(sentence) - len(str(folder)) < 300 - len("/a/folder/of/usual/length")
    return sentence
