"""Parameters as a flat dict keyed by path, such as "layers/0/mixer/w_o_NHD"."""

import re

import jax


def flatten(params: dict) -> dict[str, jax.Array]:
    """The nested dict with its paths joined."""
    flat = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: dict[str, jax.Array]) -> dict:
    """The inverse of `flatten`; a part made of digits is a layer's number."""
    params: dict = {}
    for path, leaf in flat.items():
        *parents, name = (int(part) if part.isdigit() else part for part in path.split("/"))
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params


def split(flat: dict[str, jax.Array], trainable: str) -> tuple[dict, dict]:
    """(those whose whole path the regular expression matches, the others)."""
    chosen = {path for path in flat if re.fullmatch(trainable, path)}
    return (
        {path: leaf for path, leaf in flat.items() if path in chosen},
        {path: leaf for path, leaf in flat.items() if path not in chosen},
    )
