"""config.json as transformers writes it, and our ModelConfig."""

from hydrahead_jax.config import FullAttention, ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.config_json import config_from_json, mixers_to_json

TEACHER_TYPE = "qwen3"
HYBRID_TYPE = "hydrahead"

_SIZES = {  # ours: theirs
    "vocab": "vocab_size",
    "embed": "hidden_size",
    "mlp": "intermediate_size",
    "query_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "rms_eps": "rms_norm_eps",
    "max_length": "max_position_embeddings",
}


def to_hf_config(config: ModelConfig, dtype: str) -> dict:
    """config.json of a teacher for transformers' Qwen3, or of a hybrid for the exported code."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    fields |= {
        "num_hidden_layers": config.layers,
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
    model_type = fields.get("model_type")
    if model_type not in (TEACHER_TYPE, HYBRID_TYPE):
        raise UserError(
            f"{where}: model_type is {model_type!r}; only 'qwen3' and 'hydrahead' can be read"
        )
    _refuse_unsupported(fields, where)
    needed = [*_SIZES.values(), "num_hidden_layers"]
    if missing := [name for name in needed if fields.get(name) is None]:
        raise UserError(f"{where}: {', '.join(missing)} missing")
    if model_type == TEACHER_TYPE:
        layers = fields["num_hidden_layers"]
        if type(layers) is not int or layers < 1:
            raise UserError(f"{where}: num_hidden_layers={layers!r} must be 1 or more")
        mixers = mixers_to_json((FullAttention(),) * layers)
    else:
        mixers = fields.get("mixers")
    sizes = {ours: fields[theirs] for ours, theirs in _SIZES.items()}
    try:
        config = config_from_json(
            sizes
            | {
                "mixers": mixers,
                "rope_theta": _rope_theta(fields, where),
                "tied_embeddings": fields.get("tie_word_embeddings", False),
            }
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if config.layers != fields["num_hidden_layers"]:
        raise UserError(
            f"{where}: num_hidden_layers is {fields['num_hidden_layers']} and 'mixers' has "
            f"{config.layers} layers"
        )
    return config


def is_teacher(config: ModelConfig) -> bool:
    """Whether every layer is full attention."""
    return all(isinstance(mixer, FullAttention) for mixer in config.mixers)


def _refuse_unsupported(fields: dict, where: str) -> None:
    """Settings of Qwen3's config that change the computation, and that we do not compute."""
    unsupported = [name for name in ("attention_bias", "use_sliding_window") if fields.get(name)]
    if fields.get("hidden_act", "silu") != "silu":
        unsupported.append(f"hidden_act={fields['hidden_act']!r}")
    if "sliding_attention" in (fields.get("layer_types") or ()):
        unsupported.append("layer_types with sliding_attention")
    if fields.get("quantization_config"):
        unsupported.append("quantization_config")
    if unsupported:
        raise UserError(f"{where}: not supported: {', '.join(unsupported)}")


def _rope_theta(fields: dict, where: str):
    """The base of RoPE: at the top, or in `rope_parameters` as transformers 5 writes it."""
    theta = fields.get("rope_theta")
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            raise UserError(
                f"{where}: {name} asks for RoPE of type {kind!r}; only plain RoPE can be read, so "
                "remove the scaling from config.json"
            )
        theta = rope.get("rope_theta", theta)
    if theta is None:
        raise UserError(f"{where}: rope_theta missing")
    return theta
