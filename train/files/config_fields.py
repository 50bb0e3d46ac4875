"""Lists the fields that a config file, or `key=value` on the command line, can set."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator

from hydrahead_jax.dataclass_json import describe, members, needed, short

_ENTRY = re.compile(r"^  (\w+): (.*(?:\n   .*)*)", re.MULTILINE)


def field_lines(kind: type, key: str = "", default=None, where: str = "") -> Iterator[str]:
    """Yields each field's key, type and default, and on a line of its own what it means.

    Args:
      kind: class of the config.
      key: start of the keys, such as "stages.NAME.".
      default: instance whose values are the defaults; None is the class's own defaults.
      where: end of the first line; names the class where others could stand in its place.
    """
    annotations, meanings = typing.get_type_hints(kind), _meanings(kind)
    for field in dataclasses.fields(kind):
        annotation, name = annotations[field.name], key + field.name
        is_needed = default is None and field.name in needed(kind)
        value = field.default if default is None else getattr(default, field.name)
        if not dataclasses.is_dataclass(annotation):
            default_text = "needed" if is_needed else short(value)
            yield f"{name}: {describe(annotation)}; {default_text}{where}"
            if field.name in meanings:
                yield f"    {meanings[field.name]}"
        classes = _classes(annotation)
        for inner, place in classes:
            known = value if isinstance(value, inner) else None
            only = f", in {inner.__name__}" if len(classes) > 1 else where
            yield from field_lines(inner, f"{name}{place}.", known, only)


def _classes(annotation) -> list[tuple[type, str]]:
    """Returns the dataclasses in an annotation, and what follows the field in their keys."""
    found = []
    for member in members(annotation):
        if dataclasses.is_dataclass(member):
            found.append((member, ""))
        elif typing.get_origin(member) is tuple:
            for inner, _ in _classes(typing.get_args(member)[0]):
                has_name = "name" in typing.get_type_hints(inner)
                found.append((inner, ".NAME" if has_name else ".INDEX"))
    return found


def _meanings(kind: type) -> dict[str, str]:
    """Returns the first sentence of each entry under "Attributes:" of a class's docstring."""
    entries = _ENTRY.findall(inspect.getdoc(kind).partition("Attributes:")[2])
    return {name: " ".join(text.split()).split(". ")[0].removesuffix(".") for name, text in entries}
