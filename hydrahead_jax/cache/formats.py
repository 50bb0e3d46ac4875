"""Says in which format the KV cache of each layer is stored."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydrahead_jax.cache.by_layer import is_file_name, read_formats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from pallas_kernels import KV_FORMATS, KVFormat

OneFormat = str | KVFormat | None
KVFormats = OneFormat | Sequence[OneFormat] | Mapping[int, OneFormat]
LayerFormats = tuple[KVFormat | None, ...]


def layer_formats(config: ModelConfig, kv_format: KVFormats) -> LayerFormats:
    """Returns the format of each layer's KV cache; None stores keys and values as given.

    Args:
      config: of the model.
      kv_format: a name in `KV_FORMATS`, or a format, of all layers that have softmax heads; a
        sequence with one for each layer; or a mapping from layers to theirs. None and "bf16" store
        keys and values in the cache's dtype, as do layers that the mapping leaves out. A path that
        ends in .json names a file of such a mapping, which `python -m train kv-report` writes.

    Raises:
      UserError: the name is unknown, there is no such layer, the layer has no softmax heads, or the
        format does not take the model's head dimension.
    """
    layers = range(config.layers)
    if is_file_name(kv_format):
        kv_format = read_formats(Path(kv_format))
    if isinstance(kv_format, Mapping):
        if strangers := [layer for layer in kv_format if layer not in layers]:
            raise UserError(
                f"KV cache: there is no layer {strangers[0]!r} in a model of {config.layers} "
                f"layers; use layers from 0 to {config.layers - 1}"
            )
        chosen = [kv_format.get(layer) for layer in layers]
    elif isinstance(kv_format, Sequence) and not isinstance(kv_format, str | bytes):
        if len(kv_format) != config.layers:
            raise UserError(
                f"KV cache: {len(kv_format)} formats for {config.layers} layers; give one for each "
                "layer, or None to store keys and values unchanged"
            )
        chosen = kv_format
    else:
        chosen = [kv_format if config.softmax_heads(layer) else None for layer in layers]
    return tuple(_checked(config, layer, one) for layer, one in enumerate(chosen))


def check_names(kv_format: str | Sequence[str | None] | None) -> None:
    """Raises UserError where a name or a file is unknown, before there is a model."""
    if is_file_name(kv_format):
        read_formats(Path(kv_format))
        return
    for name in (kv_format,) if kv_format is None or isinstance(kv_format, str) else kv_format:
        _named(name)


def _checked(config: ModelConfig, layer: int, one: OneFormat) -> KVFormat | None:
    found = _named(one)
    if found is None:
        return None
    if not config.softmax_heads(layer):
        raise UserError(
            f"KV cache: layer {layer} has no softmax heads and no KV cache; give None for it"
        )
    if refusal := _refusal(found, config.head_dim):
        raise UserError(f"KV cache: {refusal}; use another format")
    return found


@functools.cache
def _refusal(kv_format: KVFormat, head_dim: int) -> str:
    """Says why a format does not take heads of that dimension; nothing if it does."""
    try:
        kv_format.bytes_a_token(head_dim)
    except ValueError as error:
        return str(error)
    return ""


def _named(one: OneFormat) -> KVFormat | None:
    """Returns a format; None for one that stores keys and values as given."""
    if isinstance(one, str):
        if one not in KV_FORMATS:
            raise UserError(
                f"KV cache: there is no format {one!r}; use one of {', '.join(KV_FORMATS)}"
            )
        one = KV_FORMATS[one]
    if not isinstance(one, KVFormat | None):
        raise UserError(
            f"KV cache: {one!r} is not a format; use a KVFormat, or one of {', '.join(KV_FORMATS)}"
        )
    return None if one is None or one.is_raw else one
