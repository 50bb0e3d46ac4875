"""Defines the config of a HydraHead model, for Hugging Face transformers."""

import transformers
from transformers import PretrainedConfig
from transformers.utils import logging

OLDEST, NEWEST = (5, 21), (5, 24)  # versions that this code was tested with
_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])

if _VERSION < OLDEST:
    raise ImportError(
        f"a HydraHead model needs transformers 5.21 or newer, and this is "
        f"{transformers.__version__}; run: pip install -U transformers"
    )
if _VERSION > NEWEST:
    logging.get_logger(__name__).warning_once(
        f"this HydraHead model was tested with transformers up to 5.24, and this is "
        f"{transformers.__version__}"
    )


class HydraHeadConfig(PretrainedConfig):
    """Configures a Qwen3-architecture decoder with layers of several token mixers.

    A layer splits its heads between softmax attention and the gated delta rule, or is native hybrid
    attention.

    Args:
      mixers: one object for each layer: {"kind": "full_attention"}, or {"kind": "hydra",
        "fa_heads": [query heads with softmax attention], "choices": {...}}, all other heads
        running the gated delta rule. Full attention in every layer if None. The choices are:
        fusion ("scale", "none" or "gated"), neg_eigval, short_conv, conv_silu, log_scale_base,
        log_scale_in_training and query_decomposition; with native_hybrid, the fields of such a
        layer, the other heads compute that in place of the delta rule. Or {"kind":
        "native_hybrid", "window": tokens that a query sees, or None for all, "slots": ...,
        "sinks": ..., "gate_normaliser": ...}, and where they are set "value_silu": True,
        "output_norm": True and "qk_norm": False.
      kv_cache: format in which the cache stores keys and values, such as "ultraquant", or a list
        with one for each layer; None, or "bf16", stores them as given.

    The other arguments mean what they mean in Qwen3's config.
    """

    model_type = "hydrahead"

    def __init__(
        self,
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        hidden_act="silu",
        initializer_range=0.02,
        use_cache=True,
        tie_word_embeddings=True,
        mixers=None,
        kv_cache=None,
        **kwargs,
    ):
        if hidden_act != "silu":
            raise ValueError(f"hidden_act={hidden_act!r}: only 'silu' is supported")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.hidden_act = hidden_act
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        if mixers is None:
            mixers = [{"kind": "full_attention"}] * num_hidden_layers
        if len(mixers) != num_hidden_layers:
            raise ValueError(f"{len(mixers)} mixers for num_hidden_layers={num_hidden_layers}")
        self.mixers = mixers
        self.kv_cache = kv_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    @property
    def layer_types(self) -> list[str]:
        """Tells transformers which cache to make: each layer may have both kinds of heads."""
        return ["hybrid"] * self.num_hidden_layers
