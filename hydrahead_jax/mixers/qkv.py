"""Projects queries, keys and values, and normalises queries and keys as Qwen3 does."""

import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers.init import fan_in, ones
from hydrahead_jax.ops.norms import rms_norm


class QKV(nnx.Module):
    """Projects for `query_heads` query heads and `kv_heads` KV heads.

    Without `norm` the norms of queries and keys do nothing.
    """

    def __init__(
        self,
        config: ModelConfig,
        query_heads: int,
        kv_heads: int,
        *,
        norm: bool = True,
        rngs: nnx.Rngs,
    ):
        D, H = config.embed, config.head_dim
        self.eps, self.norm = config.rms_eps, norm
        self.w_q_DNH = fan_in(rngs, (D, query_heads, H), D)
        self.w_k_DKH = fan_in(rngs, (D, kv_heads, H), D)
        self.w_v_DKH = fan_in(rngs, (D, kv_heads, H), D)
        if norm:
            self.q_norm_H = ones((H,))
            self.k_norm_H = ones((H,))

    def __call__(self, x_BTD, query_heads=None, kv_heads=None):
        """Returns q, k, v, none of them normalised, of all heads or of those in two tuples."""
        weights = ((self.w_q_DNH, query_heads), (self.w_k_DKH, kv_heads), (self.w_v_DKH, kv_heads))
        return tuple(
            jnp.einsum("BTD,DNH->BTNH", x_BTD, w[...] if heads is None else w[:, jnp.array(heads)])
            for w, heads in weights
        )

    def norm_q(self, q_BTNH):
        return rms_norm(q_BTNH, self.q_norm_H[...], eps=self.eps) if self.norm else q_BTNH

    def norm_k(self, k_BTKH):
        return rms_norm(k_BTKH, self.k_norm_H[...], eps=self.eps) if self.norm else k_BTKH
