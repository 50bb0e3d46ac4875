"""Defines native hybrid attention: a window of tokens and slots before it, or all tokens."""

import torch.nn.functional as F
from torch import nn

from .attention_hydrahead import GroupedAttention
from .configuration_hydrahead import HydraHeadConfig
from .mixers_hydrahead import Projections, RMSNorm
from .tokens_hydrahead import Tokens, rotate
from .window_hydrahead import window_and_slots


class NativeHybridAttention(Projections):
    """Computes one softmax over the nearest `window` tokens and the slots (arXiv 2510.07019).

    A layer of window None sees all tokens, and `slots` keys of logit 0 and value 0 if it has sinks.
    Layers of a model from scratch may have SiLU on values, SiLU and a norm over all heads before
    the output projection, and no norm on queries and keys.
    """

    def __init__(self, config: HydraHeadConfig, mixer: dict, layer_idx: int):
        N, K = config.num_attention_heads, config.num_key_value_heads
        super().__init__(config, N, K, norm=mixer.get("qk_norm", True))
        self.layer_idx, self.mixer, self.theta = layer_idx, mixer, config.rope_theta
        if mixer["window"] is None:
            kv_of = [head * K // N for head in range(N)]
            self.null_keys = mixer["slots"] if mixer["sinks"] else 0
            self.attend = GroupedAttention(config, layer_idx, kv_of, self.null_keys)
        else:
            self.g_proj = nn.Linear(config.hidden_size, K * mixer["slots"], bias=False)
        self.g_norm = None
        if mixer.get("output_norm", False):
            self.g_norm = RMSNorm(N * config.head_dim, config.rms_norm_eps)
        self.o_proj = nn.Linear(N * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTD, tokens: Tokens, past):
        q_BTNH, k_BTKH, v_BTKH = self.project(x_BTD)
        q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        if self.mixer.get("value_silu", False):
            v_BTKH = F.silu(v_BTKH)
        if self.mixer["window"] is None:
            out_BTNH = self._everything(q_BTNH, k_BTKH, v_BTKH, tokens, past)
        else:
            cache = None if past is None else past.layers[self.layer_idx]
            inputs = (q_BTNH, k_BTKH, v_BTKH, self.g_proj(x_BTD))
            out_BTNH = window_and_slots(inputs, tokens, cache, self.mixer, self.theta)
        heads_BTX = out_BTNH.flatten(2)
        if self.g_norm is not None:
            heads_BTX = self.g_norm(F.silu(heads_BTX))
        return self.o_proj(heads_BTX)

    def _everything(self, q_BTNH, k_BTKH, v_BTKH, tokens: Tokens, past):
        """Computes softmax attention; a cache begins with the null keys."""
        q_BTNH, k_BTKH = rotate(q_BTNH, tokens), rotate(k_BTKH, tokens)
        q_BNTH, k_BKSH, v_BKSH = (x.transpose(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
        if self.null_keys and (past is None or not past.layers[self.layer_idx].has_keys):
            k_BKSH, v_BKSH = (F.pad(x, (0, 0, self.null_keys, 0)) for x in (k_BKSH, v_BKSH))
        if past is not None:
            k_BKSH, v_BKSH = past.update(k_BKSH, v_BKSH, self.layer_idx)
        return self.attend(q_BNTH, k_BKSH, v_BKSH, tokens)
