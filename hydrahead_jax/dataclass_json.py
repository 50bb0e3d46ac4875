"""Converts frozen dataclasses to JSON and back; each value must suit its field's annotation."""

import dataclasses
import reprlib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json

RECORDED_IF_SET = {"recorded": "if set"}
"""Metadata of a field that is left out of JSON while it has its default.

So runs that began before there was such a field can continue.
"""
Tags = Callable[[type], dict[str, str]]
"""Returns what JSON holds in front of the fields of a class, to tell it from others."""

_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "True or False",
    types.NoneType: "None",
}
_LONGEST = 60


def class_names(kind: type) -> dict[str, str]:
    """Returns the tag of configs and run folders."""
    return {"type": kind.__name__}


def untagged(kind: type) -> dict[str, str]:
    """Returns no tag, for files of one known class."""
    return {}


def short(value) -> str:
    """Returns a value as text that fits into a sentence."""
    text = reprlib.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def to_plain(value, tags: Tags = class_names) -> Any:
    """Converts to dicts, lists and plain values; `from_plain` is the inverse."""
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: to_plain(getattr(value, field.name), tags)
            for field in dataclasses.fields(value)
            if field.metadata != RECORDED_IF_SET or getattr(value, field.name) != field.default
        }
        return tags(type(value)) | fields
    if isinstance(value, (tuple, list)):
        return [to_plain(item, tags) for item in value]
    return value


def read_as(kind: type, path: Path, tags: Tags = class_names) -> Any:
    """Reads a JSON file that holds a dataclass; raises UserError, naming the file and the field."""
    value = read_json(path)
    try:
        return from_plain(kind, value, "", tags)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def from_plain(annotation, value, where: str = "", tags: Tags = class_names) -> Any:
    """Converts plain Python or JSON to the annotated type.

    Args:
      annotation: a dataclass, a primitive type, a Literal, a tuple, or a union of them.
      value: plain value, in which a union of dataclasses must have its tag.
      where: path of the field, with which messages begin.
      tags: tags of the dataclasses.

    Raises:
      UserError: a value does not suit its annotation, or a field is unknown or missing.
    """
    kinds = members(annotation)
    must_have_tag = sum(map(dataclasses.is_dataclass, kinds)) > 1
    kind = next((m for m in kinds if _suits(m, value, tags, must_have_tag)), None)
    if kind is None:
        place = where or getattr(annotation, "__name__", "it")
        raise UserError(f"{place}: {short(value)} must be {describe(annotation, tags)}")
    if dataclasses.is_dataclass(kind):
        return _from_fields(kind, value, where, tags)
    if typing.get_origin(kind) is tuple:
        places = [_at(where, _element_name(item, i)) for i, item in enumerate(value)]
        elements = zip(_elements(kind, len(value)), value, places, strict=True)
        return tuple(from_plain(k, item, place, tags) for k, item, place in elements)
    return float(value) if kind is float else value


def describe(annotation, tags: Tags = class_names) -> str:
    """Says what values an annotation allows, such as "an integer or None"."""
    kinds, arguments = members(annotation), typing.get_args(annotation)
    if len(kinds) > 1:
        return " or ".join(describe(kind, tags) for kind in kinds)
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if typing.get_origin(annotation) is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each element {describe(arguments[0], tags)}"
        return f"a list of {len(arguments)}: {', '.join(describe(a, tags) for a in arguments)}"
    if dataclasses.is_dataclass(annotation):
        tag = [f"{key} {name!r}" for key, name in tags(annotation).items()]
        return f"an object with {tag[0] if tag else ', '.join(typing.get_type_hints(annotation))}"
    return _NAMES[annotation]


def members(annotation) -> tuple:
    """Returns the types of a union, or the one type."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _elements(kind, count: int) -> tuple:
    """Returns the annotations of the elements of a tuple."""
    arguments = typing.get_args(kind)
    return arguments[:1] * count if arguments[-1] is Ellipsis else arguments


def _suits(kind, value, tags: Tags, must_have_tag: bool) -> bool:
    """Returns whether a value can be of a type that is no union, apart from its elements."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(_elements(kind, len(value))) == len(value)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            return False
        tag = tags(kind)
        return tag.items() <= value.items() or not (must_have_tag or tag.keys() & value.keys())
    return kind is Any or type(value) in ((int, float) if kind is float else (kind,))


def _from_fields(kind: type, value: dict, where: str, tags: Tags):
    place, annotations = where or kind.__name__, typing.get_type_hints(kind)
    given = {name: item for name, item in value.items() if name not in tags(kind)}
    if unknown := [name for name in given if name not in annotations]:
        raise UserError(
            f"{place}: there is no field {short(unknown[0])}; use one of {', '.join(annotations)}"
        )
    if missing := [name for name in needed(kind) if name not in given]:
        raise UserError(f"{place}: it needs {', '.join(missing)}")
    fields = {n: from_plain(annotations[n], v, _at(where, n), tags) for n, v in given.items()}
    try:
        return kind(**fields)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def needed(kind: type) -> list[str]:
    """Returns the fields of a dataclass that have no default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return [f.name for f in fields if f.default is missing and f.default_factory is missing]


def _element_name(element, index: int) -> str:
    """Returns the `name` of an element that has one, as `key=value` changes call it."""
    return str(element.get("name", index) if isinstance(element, dict) else index)


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
