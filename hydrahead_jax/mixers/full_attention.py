"""Runs the teacher's mixer: Qwen3 attention."""

import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.cache.layered import LayerCache, LayerKV
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers.attend import attend
from hydrahead_jax.mixers.init import fan_in
from hydrahead_jax.mixers.qkv import QKV
from hydrahead_jax.mixers.types import AttentionInputs, HeadEdit, MixerOutput, Stream
from hydrahead_jax.ops.rope import rope


class FullAttentionMixer(nnx.Module):
    """Computes grouped-query attention with per-head QK norm and RoPE (arXiv 2505.09388)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, N, H = config.embed, config.query_heads, config.head_dim
        self.config = config
        self.qkv = QKV(config, N, config.kv_heads, rngs=rngs)
        self.w_o_NHD = fan_in(rngs, (N, H, D), N * H)

    def __call__(
        self, x_BTD, stream: Stream, cache: LayerCache | None = None, edit: HeadEdit | None = None
    ) -> MixerOutput:
        heads_BTNH, kv = self._heads(x_BTD, stream, cache and cache.kv)
        if edit is not None:
            heads_BTNH = edit.apply(heads_BTNH)
        out_BTD = jnp.einsum("BTNH,NHD->BTD", heads_BTNH, self.output_weight_NHD())
        return MixerOutput(out_BTD, heads_BTNH, LayerCache(kv, None) if cache else None, {})

    def output_weight_NHD(self):
        return self.w_o_NHD[...]

    def some_heads(
        self, x_BTD, stream: Stream, cache: LayerCache | None, query_heads: tuple[int, ...]
    ):
        """Returns what `heads_BTNH` holds for these query heads, and computes no other head."""
        kv_heads = tuple(sorted({self.config.kv_head(n) for n in query_heads}))
        kv = cache and cache.kv.pick(kv_heads)
        return self._heads(x_BTD, stream, kv, query_heads, kv_heads)[0]

    def attention_inputs(
        self, x_BTD, stream: Stream, query_heads=None, kv_heads=None
    ) -> AttentionInputs:
        """Returns what attention reads, of all heads or of those in two tuples."""
        config = self.config
        turn = lambda x_BTNH: rope(x_BTNH, stream.positions_BT, theta=config.rope_theta)
        q_BTNH, k_BTKH, v_BTKH = self.qkv(x_BTD, query_heads, kv_heads)
        q_BTNH, k_BTKH = turn(self.qkv.norm_q(q_BTNH)), turn(self.qkv.norm_k(k_BTKH))
        kv_of_query = [config.kv_head(n) for n in query_heads or range(config.query_heads)]
        if kv_heads is not None:
            kv_of_query = [kv_heads.index(k) for k in kv_of_query]
        return AttentionInputs(q_BTNH, k_BTKH, v_BTKH, tuple(kv_of_query))

    def _heads(self, x_BTD, stream: Stream, cache: LayerKV | None, query_heads=None, kv_heads=None):
        return attend(self.attention_inputs(x_BTD, stream, query_heads, kv_heads), stream, cache)
