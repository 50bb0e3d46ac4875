"""Checks changes to configs, and records of configs that an old commit wrote.

old_configs.json holds `to_plain(config())` of files in configs/ at commit 3f8396b.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest

from hydrahead_jax.dataclass_json import from_plain, to_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.resumable import differences
from train.commands.pretrain import PretrainConfig
from train.commands.transfer import TransferConfig
from train.files.config_file import load_config, override
from train.select.config import SelectConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    rate: float = 1.0
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    name: str
    size: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1
    on: bool = False
    folder: str | None = None
    pair: tuple[int, int] = (1, 2)
    lengths: tuple[int, ...] = ()
    parts: tuple[Part, ...] = (Part(name="first"), Part(name="second"))
    either: Part | Other = Other(name="x")

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} is negative")


@pytest.mark.parametrize(
    ("assignment", "read", "expected"),
    [
        ("steps=7", lambda c: c.steps, 7),
        ("on=True", lambda c: c.on, True),
        ("on=false", lambda c: c.on, False),
        ("folder=data/x=y", lambda c: c.folder, "data/x=y"),
        ("folder=123", lambda c: c.folder, "123"),
        ("folder=None", lambda c: c.folder, None),
        ("pair=(3, 4)", lambda c: c.pair, (3, 4)),
        ("lengths=[5]", lambda c: c.lengths, (5,)),
        ("parts.second.rate=3e-4", lambda c: c.parts[1].rate, 3e-4),
        ("parts.0.rate=2", lambda c: c.parts[0].rate, 2.0),
        ("parts.first.kind=b", lambda c: c.parts[0].kind, "b"),
        ("parts.first.name=4", lambda c: c.parts[0].name, "4"),
        ("either.size=9", lambda c: c.either.size, 9),
    ],
)
def test_override(assignment, read, expected):
    value = read(override(Config(), assignment))
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stps=7", r"stps: Config has no field 'stps'; use one of steps, on, folder"),
        ("parts.second.rat=1", r"Part has no field 'rat'; use one of name, rate, kind"),
        ("parts.third.rate=1", r"no element 'third'; use one of first, second"),
        ("parts.first=1", r"name a field of element 'first'"),
        ("steps=1.5", r"steps: 1\.5 must be an integer"),
        ("steps=True", r"steps: True must be an integer"),
        ("steps=many", r"steps: 'many' must be an integer"),
        ("on=1", r"on: 1 must be True or False"),
        ("pair=(1,)", r"pair: \(1,\) must be a list of 2: an integer, an integer"),
        ("pair=(1, 'x')", r"pair\.1: 'x' must be an integer"),
        ("lengths=5", r"lengths: 5 must be a list"),
        ("parts.first.rate=fast", r"'fast' must be a number"),
        ("parts.first.kind=c", r"'c' must be one of 'a', 'b'"),
        ("steps.x=1", r"1 has no field 'x'"),
        (
            "either=3",
            r"either: 3 must be an object with type 'Part' or an object with type 'Other'",
        ),
        ("steps=-1", r"steps: steps=-1 is negative"),
        ("steps", r"'steps' must have the form key=value"),
    ],
)
def test_override_refuses(assignment, message):
    with pytest.raises(UserError, match=message):
        override(Config(), assignment)


def test_differences():
    old, new = to_plain(Config()), to_plain(override(Config(), "parts.first.rate=2"))
    assert differences(old, new) == ["parts.0.rate is 1.0 there and 2.0 here"]
    assert differences(old, old) == []
    assert len(differences({"a": 1, "b": [1]}, {"b": [1, 2], "c": 0})) == 3


def test_load_config(tmp_path):
    path = tmp_path / "x.py"
    with pytest.raises(UserError, match=r"there is no config file .*x\.py"):
        load_config(str(path), Config)
    path.write_text("y = 1\n")
    with pytest.raises(UserError, match=r"has no function config\(\)"):
        load_config(str(path), Config)
    path.write_text("def config():\n    return 3\n")
    with pytest.raises(UserError, match="holds a int and this command needs a Config"):
        load_config(str(path), Config)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny_select", SelectConfig),
        ("tiny_teacher", PretrainConfig),
        ("qwen3_1p7b_3to1_512k", TransferConfig),
    ],
)
def test_records_of_an_old_commit_stay_equal(name, kind):
    """Runs continue that began before there were some fields: these are RECORDED_IF_SET."""
    old = json.loads(Path(__file__).with_name("old_configs.json").read_text())[name]
    assert to_plain(from_plain(kind, old)) == old
