"""Says in which format each layer's keys and values are stored, and encodes and decodes them."""

import functools

import torch

from .kv_formats_hydrahead import FORMATS


def layer_formats(config, kv_cache=None) -> list:
    """Returns the format of each layer's keys and values; None keeps them as they are.

    Args:
      config: of the model.
      kv_cache: a name, or a list with a name or None for each layer; the config's if None.

    Raises:
      ValueError: a name is unknown, the list has another length than the model, a layer has no
        softmax heads, or a format does not take the head dimension.
    """
    kv_cache = config.kv_cache if kv_cache is None else kv_cache
    one_for_all = kv_cache is None or isinstance(kv_cache, str)
    names = [kv_cache] * len(config.mixers) if one_for_all else list(kv_cache)
    if len(names) != len(config.mixers):
        raise ValueError(
            f"kv_cache has {len(names)} names for {len(config.mixers)} layers; give one for each, "
            "or None to store keys and values unchanged"
        )
    found = []
    for layer, (name, mixer) in enumerate(zip(names, config.mixers, strict=True)):
        kv_format = None if name is None else _checked(name, config.head_dim)
        if kv_format is not None and not _has_softmax_heads(mixer):
            if not one_for_all:
                raise ValueError(
                    f"kv_cache: layer {layer} has no softmax heads and no keys to store; give None"
                )
            kv_format = None
        found.append(kv_format)
    return found


def encoded(kv_format, key_states, value_states) -> list:
    """Returns the parts of keys and values [B, K, T, H], keys first."""
    keys, values = kv_format
    return [*keys.encode(key_states), *values.encode(value_states)]


def decoded(kv_format, parts, dtype):
    """Returns keys and values [B, K, S, H] of the parts."""
    count = len(parts) // 2
    sides = zip(kv_format, (parts[:count], parts[count:]), strict=True)
    return [side.decode(part).to(dtype) for side, part in sides]


def _has_softmax_heads(mixer: dict) -> bool:
    if mixer["kind"] == "hydra":
        return len(mixer["fa_heads"]) > 0
    return mixer["kind"] == "full_attention" or mixer["window"] is None


@functools.cache
def _checked(name, head_dim: int):
    """Returns the format of that name, if it takes heads of that dimension."""
    if name not in FORMATS:
        raise ValueError(f"kv_cache: there is no format {name!r}; use one of {', '.join(FORMATS)}")
    try:
        for side in FORMATS[name] or ():
            side.encode(torch.zeros(head_dim))
    except ValueError as error:
        raise ValueError(f"kv_cache: {error}; use another format") from error
    return FORMATS[name]
