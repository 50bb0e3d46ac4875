"""Loads experiments from Python files, and applies `key=value` changes."""

import ast
import dataclasses
import importlib.util
import typing
from pathlib import Path
from typing import TypeVar

from hydrahead_jax.dataclass_json import from_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.local_path import local_path

C = TypeVar("C")


def load_config(path: str, kind: type[C], assignments: tuple[str, ...] = (), *others: type) -> C:
    """Returns the result of `config()` in the file at `path`, with `assignments` applied in order.

    Raises:
      UserError: there is no such file, it makes neither a `kind` nor one of the `others`, an
        assignment does not fit, or a path is an address.
    """
    config = _run(local_path(path))
    if not isinstance(config, (kind, *others)):
        kinds = " or ".join(f"a {kind.__name__}" for kind in (kind, *others))
        raise UserError(f"{path} holds a {type(config).__name__} and this command needs {kinds}")
    for assignment in assignments:
        config = override(config, assignment)
    _check_paths(config, "")
    return config


def _check_paths(value, where: str) -> None:
    """Raises UserError where a text of the config is an address; no field may be one."""
    if isinstance(value, str):
        try:
            local_path(value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            _check_paths(item, f"{where}.{getattr(item, 'name', index)}")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            name = f"{where}.{field.name}" if where else field.name
            _check_paths(getattr(value, field.name), name)


def _run(path: Path):
    if not path.is_file():
        raise UserError(f"there is no config file {path}; check the path")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None:
        raise UserError(f"{path} must be a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise UserError(f"{path} has no function config(); add one that returns the config")
    return module.config()


def override(config: C, assignment: str) -> C:
    """Returns a new config: override(config, "stages.align.optim.learning_rate=3e-4").

    An element of a tuple is named by its index or, where it has one, by its `name`.

    Raises:
      UserError: the key is unknown, or the value has the wrong type.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"{assignment!r} must have the form key=value")
    return _set(config, key.split("."), text, key)


def _set(value, path: list[str], text: str, key: str):
    name, *rest = path
    if isinstance(value, tuple):
        index = _index(value, name, key)
        if not rest:
            raise UserError(f"{key}: name a field of element {name!r}")
        return (*value[:index], _set(value[index], rest, text, key), *value[index + 1 :])
    if not dataclasses.is_dataclass(value):
        raise UserError(f"{key}: {value!r} has no field {name!r}; remove it from the key")
    annotations = typing.get_type_hints(type(value))
    if name not in annotations:
        known = ", ".join(annotations)
        raise UserError(f"{key}: {type(value).__name__} has no field {name!r}; use one of {known}")
    if rest:
        new = _set(getattr(value, name), rest, text, key)
    else:
        new = _parse(annotations[name], text, key)
    try:
        return dataclasses.replace(value, **{name: new})
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def _index(elements: tuple, name: str, key: str) -> int:
    names = [getattr(element, "name", None) for element in elements]
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(elements):
        return int(name)
    known = ", ".join(str(n) if n else str(i) for i, n in enumerate(names))
    raise UserError(f"{key}: there is no element {name!r}; use one of {known}")


def _parse(annotation, text: str, key: str):
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text, text)
    try:
        return from_plain(annotation, value, key)
    except UserError:
        if isinstance(value, str) or not _accepts_text(annotation):
            raise
        return text


def _accepts_text(annotation) -> bool:
    return annotation is str or str in typing.get_args(annotation)
