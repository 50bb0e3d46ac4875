"""Runs the Gated DeltaNet heads of a HydraHead layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.cache.layered import CONV_TAPS, RecurrentCache
from hydrahead_jax.config import HydraChoices, ModelConfig
from hydrahead_jax.mixers.hydra_heads import HydraHeads
from hydrahead_jax.mixers.init import decay_rate, fan_in, identity_conv, ones, time_step_bias, zeros
from hydrahead_jax.mixers.parallel import gated_delta_on, short_conv_on
from hydrahead_jax.mixers.qkv import QKV
from hydrahead_jax.mixers.statistics import over_tokens
from hydrahead_jax.mixers.types import Stream
from hydrahead_jax.ops.gates import log_decay, write_strength
from hydrahead_jax.ops.norms import l2_norm
from hydrahead_jax.ops.rope import rope
from hydrahead_jax.ops.short_conv import short_conv
from pallas_kernels import gated_delta, gated_delta_step


class DeltaBranch(nnx.Module):
    """Runs conv, SiLU, QK norm, RoPE, L2 norm, then the gated delta rule.

    Every head has a KV head of its own.
    """

    def __init__(
        self, config: ModelConfig, heads: HydraHeads, choices: HydraChoices, *, rngs: nnx.Rngs
    ):
        D, N, H = config.embed, len(heads.gdn), config.head_dim
        self.rope_theta = config.rope_theta
        self.heads = heads
        self.choices = choices
        if choices.query_decomposition:
            self.qkv = QKV(config, N, N, rngs=rngs)
        if choices.short_conv:
            self.conv_q_WNH = identity_conv(CONV_TAPS, N, H)
            self.conv_k_WNH = identity_conv(CONV_TAPS, N, H)
            self.conv_v_WNH = identity_conv(CONV_TAPS, N, H)
        self.w_a_DN = fan_in(rngs, (D, N), D)
        self.w_b_DN = fan_in(rngs, (D, N), D)
        self.a_log_N = decay_rate(rngs, N)
        self.dt_bias_N = time_step_bias(rngs, N)
        self.w_gate_DNH = zeros((D, N, H))
        if choices.fusion != "none":
            self.out_norm_H = ones((H,))
            self.gamma_N = ones((N,))
        self.w_o_NHD = fan_in(rngs, (N, H, D), config.query_heads * H)

    def __call__(
        self, qkv: QKV, x_BTD, q_BTNH, k_BTNH, v_BTNH, stream: Stream, cache: RecurrentCache | None
    ):
        """Returns heads before the gate [B, T, N, H], the cache after T tokens, and statistics."""
        (q_BTNH, k_BTNH, v_BTNH), tails = self._convolve((q_BTNH, k_BTNH, v_BTNH), stream, cache)
        turn = lambda x: rope(x, stream.positions_BT, theta=self.rope_theta)
        q_BTNH = l2_norm(turn(qkv.norm_q(q_BTNH)))
        k_BTNH = l2_norm(turn(qkv.norm_k(k_BTNH)))
        project = lambda w: jnp.einsum("BTD,DN->BTN", x_BTD, w[...])
        log_decay_BTN = log_decay(project(self.w_a_DN), self.a_log_N[...], self.dt_bias_N[...])
        beta_BTN = write_strength(project(self.w_b_DN), neg_eigval=self.choices.neg_eigval)
        inputs = (q_BTNH, k_BTNH, v_BTNH, log_decay_BTN, beta_BTN)
        statistics = {
            "alpha": over_tokens(stream, jnp.exp(log_decay_BTN)),
            "beta": over_tokens(stream, beta_BTN),
        }
        if stream.layout is not None:
            out_BTNH = gated_delta_on(stream.layout, inputs, stream)
            return out_BTNH, None, statistics
        if cache is None:
            out_BTNH, _ = gated_delta(*inputs, segment_ids_BT=stream.segment_ids_BT)
            return out_BTNH, None, statistics
        if x_BTD.shape[1] == 1:
            out_BTNH, state_BNHP = _decode(inputs, stream.segment_ids_BT, cache.state_BNHP)
        else:
            out_BTNH, state_BNHP = gated_delta(
                *inputs, initial_state_BNHP=cache.state_BNHP, segment_ids_BT=stream.segment_ids_BT
            )
        return out_BTNH, RecurrentCache(state_BNHP, *tails), statistics

    def pick(self, q_BTNH, k_BTKH, v_BTKH):
        """Picks this branch's share of projections over all heads: complete KV heads, repeated."""
        gdn, kv = jnp.array(self.heads.gdn), jnp.array(self.heads.kv_of_gdn)
        return q_BTNH[:, :, gdn], k_BTKH[:, :, kv], v_BTKH[:, :, kv]

    def _convolve(self, inputs, stream: Stream, cache: RecurrentCache | None):
        """Returns the three convolved inputs, and the last W - 1 of each before convolution."""
        B, _, N, H = inputs[0].shape
        if cache is None:
            tails = (jnp.zeros((B, CONV_TAPS - 1, N, H), inputs[0].dtype),) * 3
        else:
            tails = (cache.conv_q_BWNH, cache.conv_k_BWNH, cache.conv_v_BWNP)
        new_tails = [
            jnp.concatenate([tail, x.astype(tail.dtype)], axis=1)[:, 1 - CONV_TAPS :]
            for tail, x in zip(tails, inputs, strict=True)
        ]
        if not self.choices.short_conv:
            return inputs, new_tails
        weights = (self.conv_q_WNH, self.conv_k_WNH, self.conv_v_WNH)
        layout = stream.layout
        if layout is not None and layout.size("context") > 1:
            parts = zip(inputs, weights, strict=True)
            outputs = [short_conv_on(layout, x, weight[...], stream) for x, weight in parts]
        else:
            segments = (stream.segment_ids_BT, stream.tail_segment_ids_BW)
            outputs = [
                short_conv(x, weight[...], tail, *segments)
                for x, weight, tail in zip(inputs, weights, tails, strict=True)
            ]
        if self.choices.conv_silu:
            outputs = [jax.nn.silu(x) for x in outputs]
        return outputs, new_tails


def _decode(inputs, segment_ids_B1, state_BNHP):
    """Runs one token; a padding token leaves the state alone."""
    out_BNH, new_BNHP = gated_delta_step(*(x[:, 0] for x in inputs), state_BNHP)
    real_B = segment_ids_B1[:, 0] != 0
    out_BNH = jnp.where(real_B[:, None, None], out_BNH, 0.0).astype(out_BNH.dtype)
    return out_BNH[:, None], jnp.where(real_B[:, None, None, None], new_BNHP, state_BNHP)
