"""The token mixers of HydraHead, and what they remember between calls.

Dimension letters at the end of names, here and in modeling_hydrahead.py:
  B batch   T query time   S key time   D embed   N query heads   K key/value heads
  H head dim   P value dim of the delta rule   Z chunks   C tokens of a chunk   W convolution tap
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_hydrahead import HydraHeadConfig
from .delta_rule_hydrahead import delta_rule

CONV_TAPS = 4
FUSION_EPS = 1e-6


class Tokens(NamedTuple):
    """What every layer knows of the tokens of one call.

    Attributes:
      real_BT: False on padding.
      positions_BT: counted from the first real token.
      cos_BT1H, sin_BT1H: rotary angles.
      mask_B1TS: which keys each query sees; None where `causal`, or nothing, says it all.
      causal: the queries are the keys, without padding.
    """

    real_BT: torch.Tensor
    positions_BT: torch.Tensor
    cos_BT1H: torch.Tensor
    sin_BT1H: torch.Tensor
    mask_B1TS: torch.Tensor | None
    causal: bool


class LayerCache:
    """Keys and values of the softmax heads; state and last inputs of the delta-rule heads."""

    def __init__(self):
        self.k_BSKH = self.v_BSKH = None
        self.state_BNHP = None
        self.tails = {}

    def append(self, k_BTKH, v_BTKH):
        if self.k_BSKH is not None:
            k_BTKH = torch.cat([self.k_BSKH, k_BTKH], dim=1)
            v_BTKH = torch.cat([self.v_BSKH, v_BTKH], dim=1)
        self.k_BSKH, self.v_BSKH = k_BTKH, v_BTKH
        return k_BTKH, v_BTKH

    def select(self, rows):
        pick = lambda x: None if x is None else x.index_select(0, rows.to(x.device))
        self.k_BSKH, self.v_BSKH = pick(self.k_BSKH), pick(self.v_BSKH)
        self.state_BNHP = pick(self.state_BNHP)
        self.tails = {name: pick(tail) for name, tail in self.tails.items()}


class HydraHeadCache:
    """The `past_key_values` of a HydraHead model; a recurrent state cannot be rolled back."""

    is_compileable = False
    is_croppable = False

    def __init__(self, config: HydraHeadConfig):
        self.layers = [LayerCache() for _ in config.mixers]
        self.real_BS = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.real_BS is None else self.real_BS.shape[1]

    def reorder_cache(self, beam_idx):
        """Keeps the given rows, for beam search."""
        self.real_BS = self.real_BS.index_select(0, beam_idx.to(self.real_BS.device))
        for layer in self.layers:
            layer.select(beam_idx)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32."""

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


def rotate(x_BTNH, tokens: Tokens):
    """Rotary position embedding, half-split as in Qwen3."""
    left, right = x_BTNH.float().chunk(2, dim=-1)
    cos, sin = tokens.cos_BT1H, tokens.sin_BT1H
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x_BTNH.dtype)


def attend(q_BTNH, k_BSNH, v_BSNH, tokens: Tokens):
    """softmax(q k^T / sqrt(H)) v."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=tokens.mask_B1TS, is_causal=tokens.causal
    )
    return out.transpose(1, 2)


class Projections(nn.Module):
    """Query, key and value projections with Qwen3's norm on each query and key head."""

    def __init__(self, config: HydraHeadConfig, query_heads: int, kv_heads: int, own: bool = True):
        super().__init__()
        self.head_dim = config.head_dim
        if own:
            make = lambda heads: nn.Linear(config.hidden_size, heads * config.head_dim, bias=False)
            self.q_proj, self.k_proj, self.v_proj = (
                make(query_heads),
                make(kv_heads),
                make(kv_heads),
            )
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def project(self, x_BTD):
        """q, k, v, none of them normalised."""
        split = lambda x: x.unflatten(-1, (-1, self.head_dim))
        return split(self.q_proj(x_BTD)), split(self.k_proj(x_BTD)), split(self.v_proj(x_BTD))


class Branch(Projections):
    """What both kinds of heads share: own projections or picked ones, gate, norm and gamma."""

    def __init__(self, config: HydraHeadConfig, choices: dict, heads: list[int], kv: list[int]):
        super().__init__(config, len(heads), len(kv), own=choices["query_decomposition"])
        self.choices, self.heads, self.kv = choices, heads, kv
        self.g_proj = nn.Linear(config.hidden_size, len(heads) * config.head_dim, bias=False)
        if choices["fusion"] != "none":
            self.o_norm = RMSNorm(config.head_dim, FUSION_EPS)
            self.gamma = nn.Parameter(torch.ones(len(heads)))

    def pick(self, q_BTNH, k_BTKH, v_BTKH):
        """This branch's share of projections over all heads of the layer."""
        return q_BTNH[:, :, self.heads], k_BTKH[:, :, self.kv], v_BTKH[:, :, self.kv]

    def fuse(self, heads_BTNH, x_BTD):
        """gamma * gate * RMSNorm(heads); the gate is 1 where its weights are zero."""
        gate_BTNH = 2 * self.g_proj(x_BTD).sigmoid().unflatten(-1, (-1, self.head_dim))
        if self.choices["fusion"] == "none":
            return heads_BTNH * gate_BTNH
        return self.o_norm(heads_BTNH) * gate_BTNH * self.gamma[:, None].to(heads_BTNH.dtype)


class SoftmaxHeads(Branch):
    """Softmax attention without rotary embedding, its query scaled by ln(t + a) / ln(a)."""

    def __init__(self, config: HydraHeadConfig, choices: dict, heads: list[int], kv_of: list[int]):
        super().__init__(config, choices, heads, sorted(set(kv_of)))
        self.kv_of_heads = [self.kv.index(head) for head in kv_of]

    def forward(self, q_BTNH, k_BTKH, v_BTKH, x_BTD, norms, tokens: Tokens, cache):
        q_BTNH, k_BTKH = norms.q_norm(q_BTNH), norms.k_norm(k_BTKH)
        if self.choices["log_scale_in_training"] or not self.training:
            base = self.choices["log_scale_base"]
            scale_BT = (tokens.positions_BT.float() + base).log() / math.log(base)
            q_BTNH = (q_BTNH * scale_BT[..., None, None]).to(q_BTNH.dtype)
        if cache is not None:
            k_BTKH, v_BTKH = cache.append(k_BTKH, v_BTKH)
        k_BSNH, v_BSNH = k_BTKH[:, :, self.kv_of_heads], v_BTKH[:, :, self.kv_of_heads]
        return attend(q_BTNH, k_BSNH, v_BSNH, tokens)


class DeltaHeads(Branch):
    """Convolution, QK norm, rotary embedding, L2 norm, then the gated delta rule in float32."""

    def __init__(self, config: HydraHeadConfig, choices: dict, heads: list[int], kv_of: list[int]):
        super().__init__(config, choices, heads, kv_of)
        N, channels = len(heads), len(heads) * config.head_dim
        if choices["short_conv"]:
            make = lambda: nn.Conv1d(channels, channels, CONV_TAPS, groups=channels, bias=False)
            self.q_conv, self.k_conv, self.v_conv = make(), make(), make()
        self.a_proj = nn.Linear(config.hidden_size, N, bias=False)
        self.b_proj = nn.Linear(config.hidden_size, N, bias=False)
        self.a_log = nn.Parameter(torch.zeros(N))
        self.dt_bias = nn.Parameter(torch.zeros(N))

    def forward(self, q_BTNH, k_BTNH, v_BTNH, x_BTD, norms, tokens: Tokens, cache):
        if self.choices["short_conv"]:
            q_BTNH = self._convolve("q", q_BTNH, tokens, cache)
            k_BTNH = self._convolve("k", k_BTNH, tokens, cache)
            v_BTNH = self._convolve("v", v_BTNH, tokens, cache)
        q_BTNH = l2_norm(rotate(norms.q_norm(q_BTNH), tokens))
        k_BTNH = l2_norm(rotate(norms.k_norm(k_BTNH), tokens))
        step_BTN = F.softplus(self.a_proj(x_BTD).float() + self.dt_bias.float())
        beta_BTN = self.b_proj(x_BTD).float().sigmoid() * (2 if self.choices["neg_eigval"] else 1)
        real_BT1 = tokens.real_BT[..., None]
        inputs = (
            q_BTNH.float() * self.head_dim**-0.5,
            k_BTNH.float(),
            v_BTNH.float(),
            (-self.a_log.float().exp() * step_BTN).masked_fill(~real_BT1, 0),
            beta_BTN.masked_fill(~real_BT1, 0),
        )
        state_BNHP = cache.state_BNHP if cache is not None else None
        if state_BNHP is None:
            B, _, N, H = q_BTNH.shape
            state_BNHP = inputs[0].new_zeros(B, N, H, H)
        with torch.autocast(x_BTD.device.type, enabled=False):
            out_BTNP, state_BNHP = delta_rule(*inputs, state_BNHP)
        if cache is not None:
            cache.state_BNHP = state_BNHP
        return out_BTNP.to(v_BTNH.dtype)

    def _convolve(self, name: str, x_BTNH, tokens: Tokens, cache):
        """Causal and depthwise; padding enters as zero."""
        x_BTM = (x_BTNH * tokens.real_BT[..., None, None]).flatten(2)
        tail_BWM = cache.tails.get(name) if cache is not None else None
        if tail_BWM is None:
            tail_BWM = x_BTM.new_zeros(x_BTM.shape[0], CONV_TAPS - 1, x_BTM.shape[2])
        x_BTM = torch.cat([tail_BWM, x_BTM], dim=1)
        if cache is not None:
            cache.tails[name] = x_BTM[:, 1 - CONV_TAPS :].clone()
        out_BMT = getattr(self, f"{name}_conv")(x_BTM.transpose(1, 2))
        if self.choices["conv_silu"]:
            out_BMT = F.silu(out_BMT)
        return out_BMT.transpose(1, 2).unflatten(-1, (-1, self.head_dim))


class HydraHeadAttention(Projections):
    """Both branches of a layer, their heads put back in order before the output projection."""

    def __init__(self, config: HydraHeadConfig, mixer: dict):
        choices, N = mixer["choices"], config.num_attention_heads
        self_has_projections = not choices["query_decomposition"]
        super().__init__(config, N, config.num_key_value_heads, own=self_has_projections)
        self.shared = self_has_projections
        fa = list(mixer["fa_heads"])
        gdn = [head for head in range(N) if head not in fa]
        kv_of = lambda heads: [head * config.num_key_value_heads // N for head in heads]
        self.fa = SoftmaxHeads(config, choices, fa, kv_of(fa)) if fa else None
        self.gdn = DeltaHeads(config, choices, gdn, kv_of(gdn)) if gdn else None
        if choices["fusion"] == "gated":
            self.fusion_proj = nn.Linear(config.hidden_size, 2, bias=False)
        self.gated_fusion = choices["fusion"] == "gated"
        self.order = [(fa + gdn).index(head) for head in range(N)]
        self.o_proj = nn.Linear(N * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTD, tokens: Tokens, cache):
        shared = self.project(x_BTD) if self.shared else None
        weights_BT2 = 2 * self.fusion_proj(x_BTD).softmax(-1) if self.gated_fusion else None
        parts = []
        for index, branch in enumerate((self.fa, self.gdn)):
            if branch is None:
                continue
            qkv = branch.pick(*shared) if self.shared else branch.project(x_BTD)
            norms = self if self.shared else branch
            part_BTNH = branch.fuse(branch(*qkv, x_BTD, norms, tokens, cache), x_BTD)
            if self.gated_fusion:
                part_BTNH = part_BTNH * weights_BT2[:, :, index, None, None]
            parts.append(part_BTNH)
        heads_BTNH = torch.cat(parts, dim=2)[:, :, self.order]
        return self.o_proj(heads_BTNH.flatten(2))


class FullAttention(Projections):
    """Qwen3's attention: softmax with rotary embedding on every head."""

    def __init__(self, config: HydraHeadConfig):
        super().__init__(config, config.num_attention_heads, config.num_key_value_heads)
        self.group = config.num_attention_heads // config.num_key_value_heads
        width = config.num_attention_heads * config.head_dim
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x_BTD, tokens: Tokens, cache):
        q_BTNH, k_BTKH, v_BTKH = self.project(x_BTD)
        q_BTNH, k_BTKH = rotate(self.q_norm(q_BTNH), tokens), rotate(self.k_norm(k_BTKH), tokens)
        if cache is not None:
            k_BTKH, v_BTKH = cache.append(k_BTKH, v_BTKH)
        k_BSNH, v_BSNH = (x.repeat_interleave(self.group, dim=2) for x in (k_BTKH, v_BTKH))
        return self.o_proj(attend(q_BTNH, k_BSNH, v_BSNH, tokens).flatten(2))
