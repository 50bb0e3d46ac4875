"""Reads and writes UltraQuant formats that differ from layer to layer."""

from collections.abc import Mapping
from pathlib import Path

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json, write_json
from pallas_kernels import KVFormat
from pallas_kernels.kv_cache.ultraquant import UltraQuant

SIDES = ("keys", "values")
IS_ROTATED = {"keys": True, "values": False}


def is_file_name(kv_format) -> bool:
    """Returns whether a format is given as the path of a file that `write_formats` wrote."""
    return isinstance(kv_format, str) and kv_format.endswith(".json")


def ultraquant(c: Mapping[str, float]) -> KVFormat:
    """Returns UltraQuant with one c for the keys and one for the values."""
    return KVFormat(**{side: UltraQuant(c=c[side], rotated=IS_ROTATED[side]) for side in SIDES})


def write_formats(path: Path, c: Mapping[int, Mapping[str, float]]) -> None:
    """Writes the c of each layer's keys and values."""
    write_json(path, {"format": "ultraquant", "c": {str(layer): of for layer, of in c.items()}})


def read_formats(path: Path) -> dict[int, KVFormat]:
    """Returns the format of each layer, from a file that `write_formats` wrote.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    found = read_json(path)
    try:
        return {int(layer): ultraquant(of) for layer, of in found["c"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold the c of each layer's keys and values; write it by "
            "`python -m train kv-report`"
        ) from error
