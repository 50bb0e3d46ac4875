"""Runs the mixer of Native Hybrid Attention: a window of tokens and slots before it."""

import jax
import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.cache.layered import LayerCache, pick_slots
from hydrahead_jax.config import ModelConfig, NativeHybrid
from hydrahead_jax.mixers.attend import attend
from hydrahead_jax.mixers.attend_slots import attend_slots
from hydrahead_jax.mixers.init import fan_in, ones
from hydrahead_jax.mixers.qkv import QKV
from hydrahead_jax.mixers.statistics import slots_statistics
from hydrahead_jax.mixers.types import AttentionInputs, HeadEdit, MixerOutput, Stream
from hydrahead_jax.ops.gates import log_forget
from hydrahead_jax.ops.norms import rms_norm_of_heads
from hydrahead_jax.ops.rope import rope


class NativeHybridMixer(nnx.Module):
    """Computes one softmax over window and slots in every head (arXiv 2510.07019).

    Projections, QK norm and W_O are the teacher's, unless the config says otherwise. The window's
    queries and keys have RoPE, those of the slots have not. A global layer, of window None, has no
    gates.
    """

    def __init__(self, config: ModelConfig, mixer: NativeHybrid, *, rngs: nnx.Rngs):
        D, N, H = config.embed, config.query_heads, config.head_dim
        self.config, self.choices = config, mixer
        self.qkv = QKV(config, N, config.kv_heads, norm=mixer.qk_norm, rngs=rngs)
        if mixer.window is not None:
            self.w_gate_slots_DKM = fan_in(rngs, (D, config.kv_heads, mixer.slots), D)
        if mixer.output_norm:
            self.out_norm_NH = ones((N, H))
        self.w_o_NHD = fan_in(rngs, (N, H, D), N * H)

    def __call__(
        self, x_BTD, stream: Stream, cache: LayerCache | None = None, edit: HeadEdit | None = None
    ) -> MixerOutput:
        heads_BTNH, cache, statistics = self._heads(x_BTD, stream, cache)
        heads_BTNH = self._normalise(heads_BTNH)
        if edit is not None:
            heads_BTNH = edit.apply(heads_BTNH)
        out_BTD = jnp.einsum("BTNH,NHD->BTD", heads_BTNH, self.output_weight_NHD())
        return MixerOutput(out_BTD, heads_BTNH, cache, statistics)

    def output_weight_NHD(self):
        return self.w_o_NHD[...]

    def some_heads(
        self, x_BTD, stream: Stream, cache: LayerCache | None, query_heads: tuple[int, ...]
    ):
        """Returns what `heads_BTNH` holds for these query heads.

        It computes no other head, unless the output norm needs them all.
        """
        if self.choices.output_norm:
            heads_BTNH = self._normalise(self._heads(x_BTD, stream, cache)[0])
            return heads_BTNH[:, :, jnp.array(query_heads)]
        kv_heads = tuple(sorted({self.config.kv_head(n) for n in query_heads}))
        if cache is not None:
            kv = cache.kv and cache.kv.pick(kv_heads)
            slots = cache.slots and pick_slots(cache.slots, kv_heads)
            cache = LayerCache(kv, None, slots)
        return self._heads(x_BTD, stream, cache, query_heads, kv_heads)[0]

    def _heads(
        self, x_BTD, stream: Stream, cache: LayerCache | None, query_heads=None, kv_heads=None
    ):
        """Returns heads before the output norm, the cache after T tokens, and statistics."""
        if self.choices.window is None:
            inputs = self.attention_inputs(x_BTD, stream, query_heads, kv_heads)
            heads_BTNH, kv = attend(inputs, stream, cache and cache.kv)
            return heads_BTNH, LayerCache(kv, None) if cache else None, {}
        q_BTNH, k_BTKH, v_BTKH, kv_of_query = self._project(x_BTD, query_heads, kv_heads)
        log_forget_BTKM = self._log_forget(x_BTD, kv_heads)
        heads_BTNH, slots, lse = attend_slots(
            (q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM),
            kv_of_query,
            stream,
            cache and cache.slots,
            self.choices,
            rope_theta=self.config.rope_theta,
        )
        statistics = slots_statistics(stream, *lse)
        return heads_BTNH, LayerCache(None, None, slots) if cache else None, statistics

    def attention_inputs(
        self, x_BTD, stream: Stream, query_heads=None, kv_heads=None
    ) -> AttentionInputs:
        """Returns what the attention of a global layer reads, of all heads or of two tuples."""
        q_BTNH, k_BTKH, v_BTKH, kv_of_query = self._project(x_BTD, query_heads, kv_heads)
        turn = lambda x_BTNH: rope(x_BTNH, stream.positions_BT, theta=self.config.rope_theta)
        null_keys = self.choices.null_keys
        return AttentionInputs(turn(q_BTNH), turn(k_BTKH), v_BTKH, kv_of_query, null_keys)

    def _project(self, x_BTD, query_heads, kv_heads):
        """Returns queries, keys and values without rotary embedding, and which query reads what."""
        config = self.config
        q_BTNH, k_BTKH, v_BTKH = self.qkv(x_BTD, query_heads, kv_heads)
        q_BTNH, k_BTKH = self.qkv.norm_q(q_BTNH), self.qkv.norm_k(k_BTKH)
        if self.choices.value_silu:
            v_BTKH = jax.nn.silu(v_BTKH)
        kv_of_query = tuple(config.kv_head(n) for n in query_heads or range(config.query_heads))
        if kv_heads is not None:
            kv_of_query = tuple(kv_heads.index(k) for k in kv_of_query)
        return q_BTNH, k_BTKH, v_BTKH, kv_of_query

    def _normalise(self, heads_BTNH):
        if not self.choices.output_norm:
            return heads_BTNH
        weight_NH, eps = self.out_norm_NH[...], self.config.rms_eps
        return rms_norm_of_heads(jax.nn.silu(heads_BTNH), weight_NH, eps=eps)

    def _log_forget(self, x_BTD, kv_heads: tuple[int, ...] | None):
        w_DKM = self.w_gate_slots_DKM[...]
        if kv_heads is not None:
            w_DKM = w_DKM[:, jnp.array(kv_heads)]
        gate_BTKM = jnp.einsum("BTD,DKM->BTKM", x_BTD, w_DKM)
        return log_forget(gate_BTKM, normaliser=self.choices.gate_normaliser)
