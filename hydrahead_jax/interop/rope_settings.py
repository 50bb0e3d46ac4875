"""Reads the RoPE settings of a config.json, in every place where transformers has written them."""

from hydrahead_jax.dataclass_json import short
from hydrahead_jax.errors import UserError

_PLACES = ("rope_parameters", "rope_scaling")
_LAYER_TYPE = "full_attention"
_KINDS = ("rope_type", "type")
# Settings that a config may have without a name of its kind of RoPE.
_PLAIN = {"rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings"}
_MOST = 1e30


def rope_theta(fields: dict) -> float:
    """Returns the base of plain RoPE.

    It stands at the top, or in `rope_parameters`, which may have an entry for each type of layer.

    Raises:
      UserError: the base is missing or impossible, or the config asks for another form of RoPE.
    """
    theta = fields.get("rope_theta")
    _check_share(fields, "the config")
    for name in _PLACES:
        theta = _plain_rope(name, fields.get(name)).get("rope_theta", theta)
    if theta is None:
        raise UserError("rope_theta missing; add it")
    return positive("rope_theta", theta)


def positive(name: str, value) -> float:
    """Returns `value`; raises UserError where it is no positive finite number."""
    if type(value) not in (int, float) or not 0 < value <= _MOST:
        raise UserError(f"{name}={short(value)} must be a positive finite number")
    return value


def _plain_rope(name: str, rope) -> dict:
    """Returns the settings of the layers of full attention."""
    if rope is None:
        return {}
    if not isinstance(rope, dict):
        raise UserError(f"{name}={short(rope)} must be a JSON object")
    nested = {key: value for key, value in rope.items() if isinstance(value, dict)}
    if unknown := sorted(nested.keys() - {_LAYER_TYPE}):
        raise UserError(
            f"{name} has settings for {short(unknown[0])}, which no layer is; remove them"
        )
    if nested and len(rope) > 1:
        raise UserError(
            f"{name} has settings for {_LAYER_TYPE} and others beside them; remove the others"
        )
    given = nested.get(_LAYER_TYPE, rope)
    settings = {key: value for key, value in given.items() if value is not None or key in _KINDS}
    kinds = [short(settings[key]) for key in _KINDS if key in settings]
    if not kinds and (settings.keys() - _PLAIN or settings.get("factor", 1) != 1):
        kinds = ["unknown"]
    if others := [kind for kind in kinds if kind != short("default")]:
        raise UserError(
            f"{name} asks for RoPE of type {others[0]}; only plain RoPE can be read, so remove the "
            "scaling"
        )
    _check_share(settings, name)
    return settings


def _check_share(settings: dict, name: str) -> None:
    share = settings.get("partial_rotary_factor")
    if share is not None and share != 1:
        raise UserError(
            f"{name} asks for RoPE on a share of each head, partial_rotary_factor={short(share)}; "
            "use a model with RoPE on all of each head"
        )
