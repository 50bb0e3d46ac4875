"""Defines the token mixers; tokens_hydrahead.py explains the letters at the end of names."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .attention_hydrahead import GroupedAttention, merge, take
from .cache_hydrahead import HydraHeadCacheLayer
from .configuration_hydrahead import HydraHeadConfig
from .convolution_hydrahead import ShortConvolution
from .delta_rule_hydrahead import delta_rule
from .tokens_hydrahead import Tokens, rotate
from .window_hydrahead import window_and_slots

FUSION_EPS = 1e-6


class RMSNorm(nn.Module):
    """Computes x / rms(x) * weight in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return x32.to(x.dtype) * self.weight.to(x.dtype)


def l2_norm(x_H, eps: float = 1e-6):
    x32_H = x_H.float()
    return (x32_H * torch.rsqrt(x32_H.square().sum(-1, keepdim=True) + eps)).to(x_H.dtype)


class Projections(nn.Module):
    """Projects queries, keys and values, with Qwen3's norm on each query and key head.

    `own` is False where the projections are another module's, `norm` where there is no such norm.
    """

    def __init__(
        self,
        config: HydraHeadConfig,
        query_heads: int,
        kv_heads: int,
        own: bool = True,
        norm: bool = True,
    ):
        super().__init__()
        self.head_dim = config.head_dim
        if own:
            make = lambda heads: nn.Linear(config.hidden_size, heads * config.head_dim, bias=False)
            self.q_proj, self.k_proj, self.v_proj = (
                make(query_heads),
                make(kv_heads),
                make(kv_heads),
            )
            make_norm = lambda: RMSNorm(config.head_dim, config.rms_norm_eps)
            self.q_norm = make_norm() if norm else nn.Identity()
            self.k_norm = make_norm() if norm else nn.Identity()

    def project(self, x_BTD):
        """Returns q, k, v, none of them normalised."""
        split = lambda x: x.unflatten(-1, (-1, self.head_dim))
        return split(self.q_proj(x_BTD)), split(self.k_proj(x_BTD)), split(self.v_proj(x_BTD))


class Branch(Projections):
    """Computes what both kinds of heads share: own or picked projections, gate, norm, gamma."""

    def __init__(self, config: HydraHeadConfig, choices: dict, heads: list[int], kv: list[int]):
        super().__init__(config, len(heads), len(kv), own=choices["query_decomposition"])
        self.choices, self.heads, self.kv = choices, heads, kv
        self.g_proj = nn.Linear(config.hidden_size, len(heads) * config.head_dim, bias=False)
        if choices["fusion"] != "none":
            self.o_norm = RMSNorm(config.head_dim, FUSION_EPS)
            self.gamma = nn.Parameter(torch.ones(len(heads)))

    def pick(self, q_BTNH, k_BTKH, v_BTKH):
        """Picks this branch's share of projections over all heads of the layer."""
        return take(q_BTNH, self.heads, 2), take(k_BTKH, self.kv, 2), take(v_BTKH, self.kv, 2)

    def convolve(self, qkv, tokens: Tokens, cache: HydraHeadCacheLayer | None):
        """Returns the projections unchanged; a subclass may convolve them before the norms."""
        return qkv

    def _fuse(self, heads_BTNH, x_BTD):
        """Computes gamma * gate * RMSNorm(heads); the gate is 1 where its weights are zero."""
        gate_BTNH = self.g_proj(x_BTD).sigmoid().unflatten(-1, (-1, self.head_dim))
        if self.choices["fusion"] == "none":
            return heads_BTNH * gate_BTNH * 2
        scale_N1 = (2 * self.gamma[:, None]).to(heads_BTNH.dtype)
        return self.o_norm(heads_BTNH) * gate_BTNH * scale_N1


class SoftmaxHeads(Branch):
    """Computes softmax attention without rotary embedding.

    The query is scaled by ln(t + a) / ln(a).
    """

    def __init__(self, config, choices: dict, heads: list[int], kv_of: list[int], layer_idx: int):
        super().__init__(config, choices, heads, sorted(set(kv_of)))
        kept = [self.kv.index(head) for head in kv_of]
        self.attend = GroupedAttention(config, layer_idx, kept)

    def forward(self, q_BTNH, k_BTKH, v_BTKH, x_BTD, tokens: Tokens, past, layer_idx: int):
        if self.choices["log_scale_in_training"] or not self.training:
            base = self.choices["log_scale_base"]
            scale_BT = (tokens.positions_BT.float() + base).log() / math.log(base)
            q_BTNH = (q_BTNH * scale_BT[..., None, None]).to(q_BTNH.dtype)
        k_BKSH, v_BKSH = k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2)
        if past is not None:
            k_BKSH, v_BKSH = past.update(k_BKSH, v_BKSH, layer_idx)
        out_BTNH = self.attend(q_BTNH.transpose(1, 2), k_BKSH, v_BKSH, tokens)
        return self._fuse(out_BTNH, x_BTD)


class DeltaHeads(Branch):
    """Runs convolution, QK norm, rotary embedding and L2 norm, then the gated delta rule.

    The delta rule runs in float32.
    """

    def __init__(self, config, choices: dict, heads: list[int], kv_of: list[int]):
        super().__init__(config, choices, heads, kv_of)
        N, channels = len(heads), len(heads) * config.head_dim
        if choices["short_conv"]:
            make = lambda: ShortConvolution(channels, choices["conv_silu"])
            self.q_conv, self.k_conv, self.v_conv = make(), make(), make()
        self.a_proj = nn.Linear(config.hidden_size, N, bias=False)
        self.b_proj = nn.Linear(config.hidden_size, N, bias=False)
        self.a_log = nn.Parameter(torch.zeros(N))
        self.dt_bias = nn.Parameter(torch.zeros(N))

    def convolve(self, qkv, tokens: Tokens, cache: HydraHeadCacheLayer | None):
        """Convolves each of q, k and v by its own convolution."""
        if not self.choices["short_conv"]:
            return qkv
        out = []
        convolutions = (self.q_conv, self.k_conv, self.v_conv)
        for index, (convolution, x_BTNH) in enumerate(zip(convolutions, qkv, strict=True)):
            tail = None if cache is None else cache.conv_state(index, x_BTNH.device)
            x_BTM, tail = convolution(x_BTNH.flatten(2), tail, tokens.real_BT, tokens.documents_BT)
            if cache is not None:
                cache.update_conv_state(tail, index)
            out.append(x_BTM.unflatten(-1, (-1, self.head_dim)))
        return out

    def forward(self, q_BTNH, k_BTNH, v_BTNH, x_BTD, tokens: Tokens, past, layer_idx: int):
        q_BTNH, k_BTNH = l2_norm(rotate(q_BTNH, tokens)), l2_norm(rotate(k_BTNH, tokens))
        step_BTN = F.softplus(self.a_proj(x_BTD).float() + self.dt_bias.float())
        beta_BTN = self.b_proj(x_BTD).float().sigmoid() * (2 if self.choices["neg_eigval"] else 1)
        log_decay_BTN = -self.a_log.float().exp() * step_BTN
        if tokens.real_BT is not None:
            padding_BT1 = ~tokens.real_BT[..., None]
            log_decay_BTN = log_decay_BTN.masked_fill(padding_BT1, 0)
            beta_BTN = beta_BTN.masked_fill(padding_BT1, 0)
        cache = None if past is None else past.layers[layer_idx]
        state_BNHP = None if cache is None else cache.recurrent_state(x_BTD.device)
        with torch.autocast(x_BTD.device.type, enabled=False):
            arguments = (q_BTNH, k_BTNH, v_BTNH, log_decay_BTN, beta_BTN, state_BNHP)
            out_BTNP, state_BNHP = delta_rule(*arguments, tokens.documents_BT)
        if cache is not None:
            cache.update_recurrent_state(state_BNHP)
        return self._fuse(out_BTNP, x_BTD)


class SlotHeads(Branch):
    """Computes one softmax over a window of tokens and slots, in float32 (arXiv 2510.07019)."""

    def __init__(self, config, choices: dict, heads: list[int], kv_of: list[int]):
        super().__init__(config, choices, heads, sorted(set(kv_of)))
        self.settings, self.theta = choices["native_hybrid"], config.rope_theta
        self.reads = [self.kv.index(head) for head in kv_of]
        slots = len(self.kv) * self.settings["slots"]
        self.slot_gate_proj = nn.Linear(config.hidden_size, slots, bias=False)

    def forward(self, q_BTNH, k_BTKH, v_BTKH, x_BTD, tokens: Tokens, past, layer_idx: int):
        cache = None if past is None else past.layers[layer_idx]
        inputs = (q_BTNH, k_BTKH, v_BTKH, self.slot_gate_proj(x_BTD))
        out_BTNH = window_and_slots(
            inputs, tokens, cache, self.settings, self.theta, kv_of=self.reads
        )
        return self._fuse(out_BTNH, x_BTD)


class HydraHeadAttention(Projections):
    """Runs both branches of a layer.

    Their heads return to their own order before the output projection.
    """

    def __init__(self, config: HydraHeadConfig, mixer: dict, layer_idx: int):
        choices, N = mixer["choices"], config.num_attention_heads
        self_has_projections = not choices["query_decomposition"]
        super().__init__(config, N, config.num_key_value_heads, own=self_has_projections)
        self.shared, self.layer_idx = self_has_projections, layer_idx
        fa = list(mixer["fa_heads"])
        gdn = [head for head in range(N) if head not in fa]
        kv_of = lambda heads: [head * config.num_key_value_heads // N for head in heads]
        self.fa = SoftmaxHeads(config, choices, fa, kv_of(fa), layer_idx) if fa else None
        self.gdn = self.slots = None
        if gdn and choices.get("native_hybrid") is not None:
            self.slots = SlotHeads(config, choices, gdn, kv_of(gdn))
        elif gdn:
            self.gdn = DeltaHeads(config, choices, gdn, kv_of(gdn))
        if choices["fusion"] == "gated":
            self.fusion_proj = nn.Linear(config.hidden_size, 2, bias=False)
        self.gated_fusion = choices["fusion"] == "gated"
        self.order = [(fa + gdn).index(head) for head in range(N)]
        self.o_proj = nn.Linear(N * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTD, tokens: Tokens, past):
        cache = None if past is None else past.layers[self.layer_idx]
        shared = self.project(x_BTD) if self.shared else None
        weights_BT2 = 2 * self.fusion_proj(x_BTD).softmax(-1) if self.gated_fusion else None
        parts = []
        for index, branch in enumerate((self.fa, self.slots or self.gdn)):
            if branch is None:
                continue
            qkv = branch.pick(*shared) if self.shared else branch.project(x_BTD)
            q_BTNH, k_BTKH, v_BTKH = branch.convolve(qkv, tokens, cache)
            norms = self if self.shared else branch
            q_BTNH, k_BTKH = norms.q_norm(q_BTNH), norms.k_norm(k_BTKH)
            part_BTNH = branch(q_BTNH, k_BTKH, v_BTKH, x_BTD, tokens, past, self.layer_idx)
            if self.gated_fusion:
                part_BTNH = part_BTNH * weights_BT2[:, :, index, None, None]
            parts.append(part_BTNH)
        heads_BTNH = merge(parts, self.order, 2)
        return self.o_proj(heads_BTNH.flatten(2))


class FullAttention(Projections):
    """Computes Qwen3's attention: softmax with rotary embedding on every head."""

    def __init__(self, config: HydraHeadConfig, layer_idx: int):
        N, K = config.num_attention_heads, config.num_key_value_heads
        super().__init__(config, N, K)
        self.layer_idx = layer_idx
        self.attend = GroupedAttention(config, layer_idx, [head * K // N for head in range(N)])
        self.o_proj = nn.Linear(N * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTD, tokens: Tokens, past):
        q_BTNH, k_BTKH, v_BTKH = self.project(x_BTD)
        q_BTNH, k_BTKH = rotate(self.q_norm(q_BTNH), tokens), rotate(self.k_norm(k_BTKH), tokens)
        q_BNTH, k_BKSH, v_BKSH = (x.transpose(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
        if past is not None:
            k_BKSH, v_BKSH = past.update(k_BKSH, v_BKSH, self.layer_idx)
        return self.o_proj(self.attend(q_BNTH, k_BKSH, v_BKSH, tokens).flatten(2))
