"""Converts between config.json as transformers writes it and our ModelConfig."""

from hydrahead_jax.config import FullAttention, Hydra, Mixer, ModelConfig, NativeHybrid
from hydrahead_jax.dataclass_json import from_plain, short, to_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.rope_settings import positive, rope_theta

TEACHER_TYPE = "qwen3"
HYBRID_TYPE = "hydrahead"

_KINDS = {FullAttention: "full_attention", Hydra: "hydra", NativeHybrid: "native_hybrid"}
_SIZES = {  # ours: theirs
    "vocab": "vocab_size",
    "embed": "hidden_size",
    "mlp": "intermediate_size",
    "query_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_length": "max_position_embeddings",
}
_LIMITS = dict.fromkeys(_SIZES.values(), 2**31 - 1) | {
    # Tables of heads and layers are made before the weights show that a number is impossible.
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "num_hidden_layers": 2**12,
}


def mixers_to_json(mixers: tuple[Mixer, ...]) -> list[dict]:
    """Returns one object per layer: its kind, and what the kind asks for."""
    return to_plain(mixers, _kind)


def _kind(mixer: type) -> dict[str, str]:
    """Returns the tag of a mixer; HydraChoices have none."""
    return {"kind": _KINDS[mixer]} if mixer in _KINDS else {}


def to_hf_config(config: ModelConfig, dtype: str) -> dict:
    """Returns config.json of a teacher for transformers' Qwen3, or of a hybrid for our code."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    fields |= {
        "num_hidden_layers": config.layers,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        "dtype": dtype,
        "use_cache": True,
    }
    if is_teacher(config):
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": TEACHER_TYPE,
            **fields,
            "attention_bias": False,
            "rope_scaling": None,
            "use_sliding_window": False,
        }
    return {
        "architectures": ["HydraHeadForCausalLM"],
        "model_type": HYBRID_TYPE,
        "auto_map": {
            "AutoConfig": "configuration_hydrahead.HydraHeadConfig",
            "AutoModel": "modeling_hydrahead.HydraHeadModel",
            "AutoModelForCausalLM": "modeling_hydrahead.HydraHeadForCausalLM",
        },
        **fields,
        "mixers": mixers_to_json(config.mixers),
    }


def from_hf_config(fields: dict, where: str) -> ModelConfig:
    """Raises UserError, naming `where`, for a model that is not ours or that we cannot compute."""
    try:
        return _from_hf_config(fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _from_hf_config(fields: dict) -> ModelConfig:
    model_type = fields.get("model_type")
    if model_type not in (TEACHER_TYPE, HYBRID_TYPE):
        raise UserError(f"model_type is {short(model_type)} and must be 'qwen3' or 'hydrahead'")
    if missing := [name for name in _LIMITS if fields.get(name) is None]:
        raise UserError(f"{', '.join(missing)} missing; add to the config")
    for name, most in _LIMITS.items():
        if type(fields[name]) is not int or not 1 <= fields[name] <= most:
            raise UserError(f"{name}={short(fields[name])} must be a whole number, 1 to {most}")
    _refuse_unsupported(fields)
    theta = rope_theta(fields)
    layers = fields["num_hidden_layers"]
    if model_type == TEACHER_TYPE:
        mixers = (FullAttention(),) * layers
    else:
        mixers = from_plain(tuple[Mixer, ...], fields.get("mixers"), "mixers", _kind)
    if len(mixers) != layers:
        raise UserError(
            f"num_hidden_layers is {layers} and 'mixers' has {len(mixers)} layers; set both to "
            "the same number"
        )
    try:
        return ModelConfig(
            **{ours: fields[theirs] for ours, theirs in _SIZES.items()},
            rms_eps=_positive(fields, "rms_norm_eps"),
            mixers=mixers,
            rope_theta=theta,
            tied_embeddings=_tied(fields),
        )
    except ValueError as error:
        raise UserError(f"model config: {error}") from error


def is_teacher(config: ModelConfig) -> bool:
    """Says whether every layer is full attention."""
    return all(isinstance(mixer, FullAttention) for mixer in config.mixers)


def _refuse_unsupported(fields: dict) -> None:
    """Refuses settings of Qwen3's config that change the computation and that we do not compute."""
    names = ("attention_bias", "use_sliding_window", "quantization_config", "compression_config")
    unsupported = [name for name in names if fields.get(name)]
    if fields.get("hidden_act", "silu") != "silu":
        unsupported.append(f"hidden_act={short(fields['hidden_act'])}")
    kinds = fields.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise UserError(f"layer_types={short(kinds)} must be a list with one name a layer")
    if others := [kind for kind in kinds or () if kind != "full_attention"]:
        other = others[0] if isinstance(others[0], str) else short(others[0])
        unsupported.append(f"layer_types with {other[:40]}")
    if unsupported:
        raise UserError(
            f"not supported: {', '.join(unsupported)}; use a dense Qwen3 model of full attention "
            "without quantization"
        )
    if kinds is not None and len(kinds) != fields["num_hidden_layers"]:
        raise UserError(
            f"layer_types has {len(kinds)} layers and num_hidden_layers is "
            f"{fields['num_hidden_layers']}; set both to the same number"
        )


def _tied(fields: dict) -> bool:
    tied = fields.get("tie_word_embeddings", False)
    if type(tied) is not bool:
        raise UserError(f"tie_word_embeddings={short(tied)} must be true or false")
    return tied


def _positive(fields: dict, name: str) -> float:
    value = fields.get(name)
    if value is None:
        raise UserError(f"{name} missing; add it")
    return positive(name, value)
