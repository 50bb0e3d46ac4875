"""HydraHead in PyTorch: softmax heads and gated-delta-rule heads in the same layer.

Paper: "HydraHead" (arXiv 2606.20097); the delta rule: "Gated Delta Networks" (arXiv 2412.06464).
Needs PyTorch and transformers only. mixers_hydrahead.py explains the letters at the end of names.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_hydrahead import HydraHeadConfig
from .mixers_hydrahead import (
    Branch,
    DeltaHeads,
    FullAttention,
    HydraHeadAttention,
    HydraHeadCache,
    RMSNorm,
    Tokens,
)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: HydraHeadConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class HydraHeadLayer(nn.Module):
    """Norm, mixer, residual; norm, MLP, residual."""

    def __init__(self, config: HydraHeadConfig, mixer: dict):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if mixer["kind"] == "hydra":
            self.self_attn = HydraHeadAttention(config, mixer)
        else:
            self.self_attn = FullAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTD, tokens: Tokens, cache):
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), tokens, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class HydraHeadPreTrainedModel(PreTrainedModel):
    config_class = HydraHeadConfig
    base_model_prefix = "model"
    _no_split_modules = ("HydraHeadLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _keep_in_fp32_modules_strict = ("a_log", "dt_bias", "gamma")
    _supports_sdpa = True
    _is_stateful = True

    def _init_weights(self, module):
        """Gates start at one, the convolution as the identity, decay as in Gated DeltaNet."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, Branch):
            nn.init.zeros_(module.g_proj.weight)
            if module.choices["fusion"] != "none":
                nn.init.ones_(module.gamma)
        if isinstance(module, DeltaHeads):
            self._init_delta_heads(module)

    def _init_delta_heads(self, heads: DeltaHeads):
        fresh = lambda param: not getattr(param, "_is_hf_initialized", False)
        with torch.no_grad():
            if fresh(heads.a_log):
                heads.a_log.uniform_(1.0, 16.0).log_()
            if fresh(heads.dt_bias):  # the inverse softplus of steps from 1e-3 to 1e-1
                heads.dt_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp_().expm1_().log_()
            for name in ("q_conv", "k_conv", "v_conv") if heads.choices["short_conv"] else ():
                weight = getattr(heads, name).weight
                if fresh(weight):
                    weight.zero_()
                    weight[..., -1] = 1.0


class HydraHeadModel(HydraHeadPreTrainedModel):
    def __init__(self, config: HydraHeadConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([HydraHeadLayer(config, mixer) for mixer in config.mixers])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """Runs T tokens, after those in `past_key_values`.

        `attention_mask` is 0 on padding; it covers these tokens, or all tokens so far. Positions
        are counted over real tokens unless `position_ids` gives them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = HydraHeadCache(self.config)
        if past_key_values is not None and not isinstance(past_key_values, HydraHeadCache):
            kind = type(past_key_values).__name__
            raise ValueError(f"past_key_values must be a HydraHeadCache, not a {kind}")
        tokens = self._tokens(x_BTD, attention_mask, position_ids, past_key_values)
        hidden_states = (x_BTD,)
        for index, layer in enumerate(self.layers):
            cache = None if past_key_values is None else past_key_values.layers[index]
            x_BTD = layer(x_BTD, tokens, cache)
            hidden_states += (x_BTD,)
        x_BTD = self.norm(x_BTD)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=x_BTD,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden_states[:-1], x_BTD) if output_hidden_states else None,
        )

    def _tokens(self, x_BTD, attention_mask, position_ids, cache) -> Tokens:
        B, T, _ = x_BTD.shape
        past_BS = x_BTD.new_ones(B, 0, dtype=torch.bool)
        if cache is not None and cache.real_BS is not None:
            past_BS = cache.real_BS
        real_BT = x_BTD.new_ones(B, T, dtype=torch.bool)
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[1] not in (
                T,
                T + past_BS.shape[1],
            ):
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}; it must be (batch, "
                    f"{T} new tokens), or cover the {past_BS.shape[1]} earlier ones as well"
                )
            real_BT = attention_mask[:, -T:].to(x_BTD.device).bool()
        real_BS = torch.cat([past_BS, real_BT], dim=1)
        if cache is not None:
            cache.real_BS = real_BS
        if position_ids is None:
            position_ids = (real_BS.cumsum(1) - 1)[:, -T:]
        positions_BT = position_ids.expand(B, T).clamp(min=0)
        mask_B1TS, causal = _attention_mask(real_BS, T)
        exponent = torch.arange(0, self.config.head_dim, 2, device=x_BTD.device).float()
        frequency_H = self.config.rope_theta ** (-exponent / self.config.head_dim)
        angle_BT1H = positions_BT[:, :, None, None].float() * frequency_H
        return Tokens(real_BT, positions_BT, angle_BT1H.cos(), angle_BT1H.sin(), mask_B1TS, causal)


def _attention_mask(real_BS, T: int):
    """(mask, is causal): no mask where there is no padding and its shape says it all.

    A padding token sees itself, so that its numbers stay finite; no other token reads them.
    """
    S = real_BS.shape[1]
    if bool(real_BS.all()) and T in (1, S):
        return None, T > 1
    index_S = torch.arange(S, device=real_BS.device)
    index_T1 = index_S[-T:, None]
    seen_BTS = (index_S <= index_T1) & real_BS[:, None] | (index_S == index_T1)
    return seen_BTS[:, None], False


class HydraHeadForCausalLM(HydraHeadPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HydraHeadConfig):
        super().__init__(config)
        self.model = HydraHeadModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """`generate` shall leave the cache to `forward`."""
        return False

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        logits_to_keep=0,
        return_dict=None,
        **kwargs,
    ):
        """As `HydraHeadModel.forward`; `labels`, -100 where nothing is asked, give the loss."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return result if return_dict is not False else result.to_tuple()
