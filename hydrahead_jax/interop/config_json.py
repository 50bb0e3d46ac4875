"""Converts a model's config to plain JSON and back."""

import dataclasses
import reprlib
import typing

from hydrahead_jax.config import FullAttention, Hydra, HydraChoices, Mixer, ModelConfig
from hydrahead_jax.errors import UserError

_KINDS = {"full_attention": FullAttention, "hydra": Hydra}


def short(value) -> str:
    """Returns a value of a config as text that fits into a sentence."""
    text = reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def config_to_json(config: ModelConfig) -> dict:
    """Converts a config to lists, dicts, strings and numbers.

    `config_from_json` inverts it exactly.
    """
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return fields | {"mixers": mixers_to_json(config.mixers)}


def config_from_json(fields: dict) -> ModelConfig:
    """Raises UserError for an unknown or missing field, a wrong type, or an impossible size."""
    mixers = mixers_from_json(fields.get("mixers"))
    return _build(ModelConfig, {**fields, "mixers": mixers}, "model config")


def mixers_to_json(mixers: tuple[Mixer, ...]) -> list[dict]:
    """Returns one object per layer: its kind, and what the kind asks for."""
    kinds = {kind: name for name, kind in _KINDS.items()}
    out = []
    for mixer in mixers:
        fields = dataclasses.asdict(mixer)
        if isinstance(mixer, Hydra):
            fields["fa_heads"] = list(mixer.fa_heads)
        out.append({"kind": kinds[type(mixer)], **fields})
    return out


def mixers_from_json(layers) -> tuple[Mixer, ...]:
    """Raises UserError, naming the layer, for what `mixers_to_json` would not write."""
    if not isinstance(layers, list):
        raise UserError(
            f"'mixers' must be a list with one JSON object a layer, not {short(layers)}"
        )
    return tuple(_mixer_from_json(index, fields) for index, fields in enumerate(layers))


def _mixer_from_json(layer: int, fields) -> Mixer:
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(f"mixer of layer {layer}: 'kind' must be one of {', '.join(_KINDS)}")
    kind = _KINDS[kind]
    rest = {name: value for name, value in fields.items() if name != "kind"}
    where = f"mixer of layer {layer}"
    if kind is Hydra:
        heads = rest.get("fa_heads")
        if not isinstance(heads, list) or any(type(h) is not int or h < 0 for h in heads):
            raise UserError(
                f"{where}: 'fa_heads' must be a list of head numbers, not {short(heads)}"
            )
        choices = rest.get("choices", {})
        if not isinstance(choices, dict):
            raise UserError(f"{where}: 'choices' must be a JSON object, not {short(choices)}")
        rest["fa_heads"] = tuple(heads)
        rest["choices"] = _build(HydraChoices, choices, where)
    return _build(kind, rest, where)


def _build(cls: type, fields: dict, where: str):
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(fields) - set(hints)):
        raise UserError(f"{where}: unknown field {short(unknown[0])}; use only {', '.join(hints)}")
    needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in fields]:
        raise UserError(f"{where}: {', '.join(missing)} missing; add to the config")
    for name, value in fields.items():
        if problem := _misfit(value, hints[name]):
            raise UserError(f"{where}: {name}={short(value)} must be {problem}")
    try:
        return cls(**fields)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _misfit(value, hint) -> str | None:
    """Says what a value from JSON should have been; None if it fits, or was made here."""
    if typing.get_origin(hint) is typing.Literal:
        names = typing.get_args(hint)
        return None if value in names else f"one of {', '.join(names)}"
    if hint is float:
        return None if type(value) in (int, float) else "a number"
    if hint in (int, bool, str):
        return None if type(value) is hint else hint.__name__
    return None
