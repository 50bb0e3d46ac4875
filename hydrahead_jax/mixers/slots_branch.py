"""Runs the heads of a HydraHead layer that are native hybrid attention."""

import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.config import HydraChoices, ModelConfig
from hydrahead_jax.mixers.attend_slots import attend_slots
from hydrahead_jax.mixers.hydra_heads import HydraHeads
from hydrahead_jax.mixers.init import fan_in, ones, zeros
from hydrahead_jax.mixers.qkv import QKV
from hydrahead_jax.mixers.statistics import slots_statistics
from hydrahead_jax.mixers.types import Stream
from hydrahead_jax.ops.gates import log_forget
from pallas_kernels.slot_attention.state import SlotState


class SlotsBranch(nnx.Module):
    """Computes one softmax over a window and slots, in place of the delta rule.

    Slots belong to KV heads, which several of the branch's heads may read.
    """

    def __init__(
        self, config: ModelConfig, heads: HydraHeads, choices: HydraChoices, *, rngs: nnx.Rngs
    ):
        D, N, H = config.embed, len(heads.gdn), config.head_dim
        self.rope_theta = config.rope_theta
        self.heads = heads
        self.choices = choices.native_hybrid
        if choices.query_decomposition:
            self.qkv = QKV(config, N, len(heads.kv_of_slots), rngs=rngs)
        shape = (D, len(heads.kv_of_slots), self.choices.slots)
        self.w_gate_slots_DKM = fan_in(rngs, shape, D)
        self.w_gate_DNH = zeros((D, N, H))
        if choices.fusion != "none":
            self.out_norm_H = ones((H,))
            self.gamma_N = ones((N,))
        self.w_o_NHD = fan_in(rngs, (N, H, D), config.query_heads * H)

    def __call__(
        self, qkv: QKV, x_BTD, q_BTNH, k_BTKH, v_BTKH, stream: Stream, cache: SlotState | None
    ):
        """Returns heads before the gate [B, T, N, H], the cache after T tokens, and statistics."""
        gate_BTKM = jnp.einsum("BTD,DKM->BTKM", x_BTD, self.w_gate_slots_DKM[...])
        log_forget_BTKM = log_forget(gate_BTKM, normaliser=self.choices.gate_normaliser)
        out_BTNH, cache, lse = attend_slots(
            (qkv.norm_q(q_BTNH), qkv.norm_k(k_BTKH), v_BTKH, log_forget_BTKM),
            tuple(self.heads.kv_of_slots.index(kv) for kv in self.heads.kv_of_gdn),
            stream,
            cache,
            self.choices,
            rope_theta=self.rope_theta,
        )
        return out_BTNH, cache, slots_statistics(stream, *lse)

    def pick(self, q_BTNH, k_BTKH, v_BTKH):
        """Picks this branch's share of projections over all heads."""
        heads, kv = jnp.array(self.heads.gdn), jnp.array(self.heads.kv_of_slots)
        return q_BTNH[:, :, heads], k_BTKH[:, :, kv], v_BTKH[:, :, kv]
