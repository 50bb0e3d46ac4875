"""Keeps parameters as a flat dict keyed by path, such as "layers/0/mixer/w_o_NHD"."""

import re

import jax


def flatten(params: dict) -> dict[str, jax.Array]:
    """Flattens the nested dict; keys are joined paths."""
    flat = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: dict[str, jax.Array]) -> dict:
    """Inverts `flatten`; a part of a path made of digits is a layer's number."""
    params: dict = {}
    for path, leaf in flat.items():
        *parents, name = (int(part) if part.isdigit() else part for part in path.split("/"))
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params


def split(flat: dict[str, jax.Array], trainable: str) -> tuple[dict, dict]:
    """Splits into the parameters whose full path the regular expression matches, and the others."""
    chosen = {path for path in flat if re.fullmatch(trainable, path)}
    return (
        {path: leaf for path, leaf in flat.items() if path in chosen},
        {path: leaf for path, leaf in flat.items() if path not in chosen},
    )
