"""Runs the HydraHead mixer: softmax and delta-rule heads in one layer (arXiv 2606.20097)."""

import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.cache.layered import LayerCache
from hydrahead_jax.config import Hydra, ModelConfig
from hydrahead_jax.mixers.delta_branch import DeltaBranch
from hydrahead_jax.mixers.hydra_heads import hydra_heads
from hydrahead_jax.mixers.init import zeros
from hydrahead_jax.mixers.qkv import QKV
from hydrahead_jax.mixers.slots_branch import SlotsBranch
from hydrahead_jax.mixers.softmax_branch import SoftmaxBranch
from hydrahead_jax.mixers.statistics import branch_statistics
from hydrahead_jax.mixers.types import AttentionInputs, HeadEdit, MixerOutput, Stream
from hydrahead_jax.ops.fusion import branch_weights, scale_normalise
from hydrahead_jax.ops.gates import output_gate

_FUSION_EPS = 1e-6


class HydraMixer(nnx.Module):
    """Computes y = concat_h(gamma_h * gate_h * RMSNorm(O_h)) W_O.

    The branches have different rows of W_O. A branch without heads is absent: `fa` is then None, or
    both `gdn` and `slots` are, of which a model has one.
    """

    def __init__(self, config: ModelConfig, mixer: Hydra, *, rngs: nnx.Rngs):
        self.heads = hydra_heads(config, mixer)
        self.fusion = mixer.choices.fusion
        if not mixer.choices.query_decomposition:
            self.qkv = QKV(config, config.query_heads, config.kv_heads, rngs=rngs)
        branch = lambda kind: kind(config, self.heads, mixer.choices, rngs=rngs)
        self.fa = branch(SoftmaxBranch) if self.heads.fa else None
        delta = mixer.choices.native_hybrid is None
        self.gdn = branch(DeltaBranch) if self.heads.gdn and delta else None
        self.slots = branch(SlotsBranch) if self.heads.gdn and not delta else None
        if self.fusion == "gated":
            self.w_fusion_DX = zeros((config.embed, 2))

    def __call__(
        self, x_BTD, stream: Stream, cache: LayerCache | None = None, edit: HeadEdit | None = None
    ) -> MixerOutput:
        shared = self.qkv(x_BTD) if hasattr(self, "qkv") else None
        parts, kv, recurrent, slots, statistics = [], None, None, None, {}
        if self.fa is not None:
            qkv, inputs = self._project(self.fa, x_BTD, shared)
            out_BTNH, kv = self.fa(qkv, *inputs, stream, cache and cache.kv)
            gate_BTNH = self._gate(self.fa, x_BTD)
            parts.append(self._fuse(self.fa, 0, x_BTD, out_BTNH, gate_BTNH))
            statistics |= branch_statistics(stream, "fa", out_BTNH, gate_BTNH)
        if self.gdn is not None:
            qkv, inputs = self._project(self.gdn, x_BTD, shared)
            inputs = (qkv, x_BTD, *inputs)
            out_BTNH, recurrent, own = self.gdn(*inputs, stream, cache and cache.recurrent)
            gate_BTNH = self._gate(self.gdn, x_BTD)
            parts.append(self._fuse(self.gdn, 1, x_BTD, out_BTNH, gate_BTNH))
            statistics |= own | branch_statistics(stream, "gdn", out_BTNH, gate_BTNH)
        if self.slots is not None:
            qkv, inputs = self._project(self.slots, x_BTD, shared)
            inputs = (qkv, x_BTD, *inputs)
            out_BTNH, slots, own = self.slots(*inputs, stream, cache and cache.slots)
            gate_BTNH = self._gate(self.slots, x_BTD)
            parts.append(self._fuse(self.slots, 1, x_BTD, out_BTNH, gate_BTNH))
            statistics |= own | branch_statistics(stream, "slots", out_BTNH, gate_BTNH)
        heads_BTNH = jnp.concatenate(parts, axis=2)[:, :, jnp.array(self.heads.order)]
        if edit is not None:
            heads_BTNH = edit.apply(heads_BTNH)
            split = (self.heads.fa, self.heads.gdn)
            parts = [heads_BTNH[:, :, jnp.array(heads)] for heads in split if heads]
        out_BTD = sum(
            jnp.einsum("BTNH,NHD->BTD", part, branch.w_o_NHD[...])
            for part, branch in zip(parts, self._branches(), strict=True)
        )
        cache = LayerCache(kv, recurrent, slots) if cache else None
        return MixerOutput(out_BTD, heads_BTNH, cache, statistics)

    def output_weight_NHD(self):
        weights = [branch.w_o_NHD[...] for branch in self._branches()]
        return jnp.concatenate(weights)[jnp.array(self.heads.order)]

    def some_heads(
        self, x_BTD, stream: Stream, cache: LayerCache | None, query_heads: tuple[int, ...]
    ):
        """Returns what `heads_BTNH` holds for these softmax heads, and computes no other branch."""
        shared = self.qkv(x_BTD) if hasattr(self, "qkv") else None
        qkv, inputs = self._project(self.fa, x_BTD, shared)
        out_BTNH, _ = self.fa(qkv, *inputs, stream, cache and cache.kv)
        at = jnp.array([self.heads.fa.index(n) for n in query_heads])
        gate_BTNH = self._gate(self.fa, x_BTD)
        return self._fuse(self.fa, 0, x_BTD, out_BTNH, gate_BTNH)[:, :, at]

    def attention_inputs(self, x_BTD, stream: Stream) -> AttentionInputs:
        """Returns what the softmax heads read; there must be one."""
        shared = self.qkv(x_BTD) if hasattr(self, "qkv") else None
        qkv, inputs = self._project(self.fa, x_BTD, shared)
        return self.fa.attention_inputs(qkv, *inputs, stream)

    def _branches(self):
        return [branch for branch in (self.fa, self.gdn, self.slots) if branch is not None]

    def _project(self, branch, x_BTD, shared):
        """Returns a branch's projections, its own or its share of the layer's, and its q, k, v."""
        if shared is None:
            return branch.qkv, branch.qkv(x_BTD)
        return self.qkv, branch.pick(*shared)

    def _gate(self, branch, x_BTD):
        return output_gate(jnp.einsum("BTD,DNH->BTNH", x_BTD, branch.w_gate_DNH[...]))

    def _fuse(self, branch, index: int, x_BTD, out_BTNH, gate_BTNH):
        if self.fusion == "none":
            return out_BTNH * gate_BTNH
        fused_BTNH = scale_normalise(
            out_BTNH, branch.out_norm_H[...], gate_BTNH, branch.gamma_N[...], eps=_FUSION_EPS
        )
        if self.fusion == "gated":
            weights_BT2 = branch_weights(x_BTD, self.w_fusion_DX[...])
            fused_BTNH *= weights_BT2[:, :, index, None, None]
        return fused_BTNH
