"""Runs the softmax heads of a HydraHead layer."""

import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.cache.layered import LayerKV
from hydrahead_jax.config import HydraChoices, ModelConfig
from hydrahead_jax.mixers.attend import attend
from hydrahead_jax.mixers.hydra_heads import HydraHeads
from hydrahead_jax.mixers.init import fan_in, ones, zeros
from hydrahead_jax.mixers.qkv import QKV
from hydrahead_jax.mixers.types import AttentionInputs, Stream
from hydrahead_jax.ops.gates import log_query_scale


class SoftmaxBranch(nnx.Module):
    """Computes softmax(s_t q k^T / sqrt(H)) v without RoPE.

    s_t is the log scale (section 3.2 of the paper).
    """

    def __init__(
        self, config: ModelConfig, heads: HydraHeads, choices: HydraChoices, *, rngs: nnx.Rngs
    ):
        D, N, H = config.embed, len(heads.fa), config.head_dim
        self.heads = heads
        self.choices = choices
        if choices.query_decomposition:
            self.qkv = QKV(config, N, len(heads.kv), rngs=rngs)
        self.w_gate_DNH = zeros((D, N, H))
        if choices.fusion != "none":
            self.out_norm_H = ones((H,))
            self.gamma_N = ones((N,))
        self.w_o_NHD = fan_in(rngs, (N, H, D), config.query_heads * H)

    def __call__(self, qkv: QKV, q_BTNH, k_BTKH, v_BTKH, stream: Stream, cache: LayerKV | None):
        """Returns heads before the gate [B, T, N, H], and the cache with T more tokens."""
        return attend(self.attention_inputs(qkv, q_BTNH, k_BTKH, v_BTKH, stream), stream, cache)

    def attention_inputs(self, qkv: QKV, q_BTNH, k_BTKH, v_BTKH, stream: Stream) -> AttentionInputs:
        """Returns what attention reads, of projections that are not normalised."""
        q_BTNH, k_BTKH = qkv.norm_q(q_BTNH), qkv.norm_k(k_BTKH)
        if self.choices.log_scale_in_training or not stream.training:
            scale_BT = log_query_scale(stream.positions_BT, base=self.choices.log_scale_base)
            q_BTNH = (q_BTNH * scale_BT[:, :, None, None]).astype(q_BTNH.dtype)
        return AttentionInputs(q_BTNH, k_BTKH, v_BTKH, self.heads.kv_of_fa)

    def pick(self, q_BTNH, k_BTKH, v_BTKH):
        """Picks this branch's share of projections over all heads."""
        fa, kv = jnp.array(self.heads.fa), jnp.array(self.heads.kv)
        return q_BTNH[:, :, fa], k_BTKH[:, :, kv], v_BTKH[:, :, kv]
