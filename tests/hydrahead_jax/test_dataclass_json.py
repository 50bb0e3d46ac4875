"""Checks dataclasses as JSON: exact both ways, and clear about what does not fit."""

import dataclasses
import json
from typing import Literal

import pytest

from hydrahead_jax.config import FullAttention, Hydra, HydraChoices, NativeHybrid, qwen3
from hydrahead_jax.dataclass_json import RECORDED_IF_SET, from_plain, read_as, to_plain, untagged
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.hf_config import mixers_to_json
from tests.hydrahead_jax.interop import toy

MODELS = {"teacher": toy.TEACHER, "qwen3": qwen3("32b"), **toy.HYBRIDS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    rate: float = 1.0
    kind: Literal["a", "b"] = "a"
    late: int = dataclasses.field(default=0, metadata=RECORDED_IF_SET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1
    folder: str | None = None
    pair: tuple[int, int] = (1, 2)
    parts: tuple[Part, ...] = (Part(name="first", late=3), Part(name="second"))
    either: Part | Other = Other(name="x")
    maybe: Part | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} is negative")


PLAIN = to_plain(Config())


@pytest.mark.parametrize("config", [*MODELS.values(), Config()], ids=[*MODELS, "config"])
def test_round_trip_through_text(config):
    """Members of a union are distinguished by their tag, also those without fields."""
    assert from_plain(type(config), json.loads(json.dumps(to_plain(config)))) == config


def test_names_are_written_first_and_late_fields_only_if_set():
    assert list(PLAIN) == ["type", "steps", "folder", "pair", "parts", "either", "maybe"]
    first, second = PLAIN["parts"]
    assert first == {"type": "Part", "name": "first", "rate": 1.0, "kind": "a", "late": 3}
    assert second == {"type": "Part", "name": "second", "rate": 1.0, "kind": "a"}
    assert to_plain(Other(name="x"), untagged) == {"name": "x"}


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"parts": [{"name": "q", "rate": 2}]}, "parts", (Part(name="q", rate=2.0),)),
        ({"maybe": {"name": "q"}}, "maybe", Part(name="q")),
        ({"pair": (3, 4)}, "pair", (3, 4)),
    ],
)
def test_a_tag_may_be_absent_where_there_is_one_class(change, field, value):
    assert repr(getattr(from_plain(Config, PLAIN | change), field)) == repr(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stps": 1}, "Config: there is no field 'stps'; use one of steps, folder, pair, parts"),
        ({"steps": 1.0}, "steps: 1.0 must be an integer"),
        ({"steps": True}, "steps: True must be an integer"),
        ({"steps": "1"}, "steps: '1' must be an integer"),
        ({"steps": -1}, "Config: steps=-1 is negative"),
        ({"folder": 3}, "folder: 3 must be a string or None"),
        ({"pair": [1]}, "pair: [1] must be a list of 2: an integer, an integer"),
        ({"pair": [1, "x"]}, "pair.1: 'x' must be an integer"),
        ({"parts": "ab"}, "parts: 'ab' must be a list, each element an object with type 'Part'"),
        ({"parts": [{"name": "q", "rate": "x"}]}, "parts.q.rate: 'x' must be a number"),
        ({"parts": [{"name": "q", "rate": False}]}, "parts.q.rate: False must be a number"),
        ({"parts": [{"name": "q", "kind": ["a"]}]}, "parts.q.kind: ['a'] must be one of 'a', 'b'"),
        ({"parts": [{"kind": "a"}]}, "parts.0: it needs name"),
        (
            {"parts": [{"type": "Other", "name": "q"}]},
            "parts.q: {'name': 'q', 'type': 'Other'} must",
        ),
        (
            {"either": {"name": "q"}},
            "either: {'name': 'q'} must be an object with type 'Part' or an ",
        ),
        ({"either": {"type": ["Part"]}}, "either: {'type': ['Part']} must be an object with type"),
        ({"maybe": 3}, "maybe: 3 must be an object with type 'Part' or None"),
        ({"type": "Part"}, "Config: {'either': {'name': 'x', 'type': 'Other'}, "),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    with pytest.raises(UserError) as caught:
        from_plain(Config, PLAIN | change)
    assert str(caught.value).startswith(message)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PLAIN | change))
    with pytest.raises(UserError) as caught:
        read_as(Config, path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_mixers_have_tags_of_their_own():
    slots = NativeHybrid(window=3)
    mixers = (FullAttention(), Hydra(fa_heads=(1,)), slots)
    choices = dataclasses.asdict(HydraChoices())
    assert choices.pop("native_hybrid") is None  # left out, as in folders of earlier versions
    hydra = {"kind": "hydra", "fa_heads": [1], "choices": choices}
    tagged = {"kind": "native_hybrid", "window": 3, "slots": 64, "sinks": True}
    tagged["gate_normaliser"] = 8.0  # and no field that came later
    assert mixers_to_json(mixers) == [{"kind": "full_attention"}, hydra, tagged]
    with_slots = Hydra(fa_heads=(1,), choices=HydraChoices(native_hybrid=slots))
    hydra["choices"]["native_hybrid"] = tagged
    assert mixers_to_json((with_slots,)) == [hydra]
    with pytest.raises(ValueError, match=r"native_hybrid\.window must be a number"):
        HydraChoices(native_hybrid=NativeHybrid(window=None))
    with pytest.raises(ValueError, match="native_hybrid has output_norm=True, qk_norm=False: "):
        HydraChoices(native_hybrid=NativeHybrid(window=3, output_norm=True, qk_norm=False))
