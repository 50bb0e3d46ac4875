"""Makes the config of a small teacher."""

from hydrahead_jax.config import FullAttention, ModelConfig


def toy_config(layers: int = 2, query_heads: int = 4, kv_heads: int = 2, **more) -> ModelConfig:
    """Returns a config with softmax attention in every layer, or with the `more` that is given."""
    mixers = (FullAttention(),) * layers
    sizes = {"vocab": 10, "embed": 8, "mlp": 8, "head_dim": 4, "mixers": mixers} | more
    return ModelConfig(query_heads=query_heads, kv_heads=kv_heads, **sizes)
