"""Defines one layer of the decoder."""

import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_hydrahead import HydraHeadConfig
from .mixers_hydrahead import FullAttention, HydraHeadAttention, RMSNorm
from .native_hybrid_hydrahead import NativeHybridAttention
from .tokens_hydrahead import Tokens


class MLP(nn.Module):
    """Computes the SwiGLU MLP."""

    def __init__(self, config: HydraHeadConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class HydraHeadLayer(GradientCheckpointingLayer):
    """Applies norm, mixer, residual, then norm, MLP, residual."""

    def __init__(self, config: HydraHeadConfig, mixer: dict, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if mixer["kind"] == "hydra":
            self.self_attn = HydraHeadAttention(config, mixer, layer_idx)
        elif mixer["kind"] == "native_hybrid":
            self.self_attn = NativeHybridAttention(config, mixer, layer_idx)
        else:
            self.self_attn = FullAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTD, tokens: Tokens, past):
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), tokens, past)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
