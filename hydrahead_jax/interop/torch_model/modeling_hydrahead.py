"""HydraHead in PyTorch: softmax heads and gated-delta-rule heads in the same layer.

Paper: "HydraHead" (arXiv 2606.20097); the delta rule: "Gated Delta Networks" (arXiv 2412.06464).
Needs PyTorch and transformers only. tokens_hydrahead.py explains the letters at the end of names.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

# Older versions of transformers copy only the files that this one imports.
from .attention_hydrahead import GroupedAttention  # noqa: F401
from .cache_hydrahead import CACHE_FIELD, one_cache, prepare
from .configuration_hydrahead import HydraHeadConfig
from .convolution_hydrahead import ShortConvolution  # noqa: F401
from .delta_rule_hydrahead import delta_rule  # noqa: F401
from .documents_hydrahead import find_documents, positions_in_documents
from .kernels_hydrahead import delta_rule as fast_delta_rule  # noqa: F401
from .keywords_hydrahead import LOSS_KEYWORDS, check_keywords, check_not_empty
from .mixers_hydrahead import Branch, DeltaHeads, FullAttention, HydraHeadAttention, RMSNorm
from .tokens_hydrahead import Tokens, default_positions, real_tokens, rotary_angles

logger = logging.get_logger(__name__)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: HydraHeadConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class HydraHeadLayer(GradientCheckpointingLayer):
    """Norm, mixer, residual; norm, MLP, residual."""

    def __init__(self, config: HydraHeadConfig, mixer: dict, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if mixer["kind"] == "hydra":
            self.self_attn = HydraHeadAttention(config, mixer, layer_idx)
        else:
            self.self_attn = FullAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTD, tokens: Tokens, past):
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), tokens, past)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class HydraHeadPreTrainedModel(PreTrainedModel):
    config_class = HydraHeadConfig
    base_model_prefix = "model"
    _no_split_modules = ("HydraHeadLayer",)
    _skip_keys_device_placement = ("past_key_values", "cache")
    _keep_in_fp32_modules_strict = ("a_log", "dt_bias", "gamma")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
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
        self.layers = nn.ModuleList(
            [HydraHeadLayer(config, mixer, index) for index, mixer in enumerate(config.mixers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
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
        return_dict=None,
        cache=None,
        **kwargs,
    ):
        """Runs T tokens, after those in the cache.

        Args:
          input_ids: [B, T]; or give inputs_embeds.
          attention_mask: 0 on padding, wherever it is; [B, T], or with all earlier tokens.
          position_ids: counted over real tokens if None. Without a mask and a cache, a document
            begins wherever they do not go on by one, as in transformers' Qwen3.
          past_key_values: a DynamicCache of this model; `cache` is another name of it.
          inputs_embeds: [B, T, D].
          use_cache: whether to return a cache.
          output_hidden_states: whether to return what enters each layer, and the output.
          return_dict: False for a tuple.
          cache: see past_key_values.
          **kwargs: cu_seq_lens_q or seq_idx, where rows hold several documents.

        Raises:
          TypeError: a keyword that is not computed.
          ValueError: inputs that do not fit each other.
        """
        check_keywords(kwargs, self.config)
        past = one_cache(past_key_values, cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_not_empty(given)
        x_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past, use_cache = self._cache(past, use_cache)
        tokens = self._tokens(x_BTD, attention_mask, position_ids, past, kwargs)
        if tokens.documents_BT is not None and past is not None:
            if use_cache == "asked":
                raise ValueError(
                    "a row of several documents cannot be continued; run it with use_cache=False"
                )
            past = None
        if past is not None:
            past.layers[0].real_BS = tokens.real_BS
            for layer in past.layers:
                layer.tokens_seen += x_BTD.shape[1]
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = []
        for layer in self.layers:
            if output_hidden_states:
                hidden_states.append(x_BTD)
            x_BTD = layer(x_BTD, tokens, past)
        x_BTD = self.norm(x_BTD)
        result = BaseModelOutputWithPast(
            last_hidden_state=x_BTD,
            hidden_states=(*hidden_states, x_BTD) if output_hidden_states else None,
            **{CACHE_FIELD: past if use_cache else None},
        )
        return result if _as_dict(return_dict, self.config) else result.to_tuple()

    def _cache(self, past, use_cache):
        """(the cache to fill, whether to return it): "asked" if the caller said so."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if past is not None:
                raise ValueError(
                    "gradient checkpointing runs each layer twice, which would fill the cache "
                    "twice; leave the cache out or call gradient_checkpointing_disable()"
                )
            if use_cache:
                logger.warning_once("use_cache=True is ignored under gradient checkpointing")
            return None, False
        asked = bool(use_cache) or past is not None
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if past is None and use_cache:
            past = DynamicCache()
        if past is not None:
            prepare(past, len(self.layers))
        return past, use_cache and ("asked" if asked else "default")

    def _tokens(self, x_BTD, attention_mask, position_ids, past, kwargs) -> Tokens:
        B, T, _ = x_BTD.shape
        device = x_BTD.device
        seen, real_BS = 0, None
        if past is not None:
            seen, real_BS = past.get_seq_length(), past.layers[0].real_BS
            if seen and past.batch_size != B:
                raise ValueError(f"the cache holds {past.batch_size} rows, and the input has {B}")
        if position_ids is not None:
            if tuple(position_ids.shape) not in ((B, T), (1, T)):
                shape = tuple(position_ids.shape)
                raise ValueError(f"position_ids has shape {shape}; it must be ({B}, {T})")
            position_ids = position_ids.to(device)
        real_BT, real_BS = real_tokens(attention_mask, real_BS, seen, B, T, device)
        cu_seq_lens, seq_idx = kwargs.get("cu_seq_lens_q"), kwargs.get("seq_idx")
        looked_at = None if past is not None and is_tracing(x_BTD) else position_ids
        documents_BT = find_documents(looked_at, cu_seq_lens, seq_idx, attention_mask, seen, B, T)
        if documents_BT is not None:
            if real_BT is not None:
                raise ValueError("documents in one row go without attention_mask; leave it out")
            documents_BT = documents_BT.to(device)
            if position_ids is None:
                position_ids = positions_in_documents(documents_BT)
        if position_ids is None:
            position_ids = default_positions(real_BS, seen, T, device)
        theta, head_dim = self.config.rope_theta, self.config.head_dim
        return Tokens(
            position_ids.clamp(min=0),
            *rotary_angles(position_ids.clamp(min=0), theta, head_dim),
            real_BT=real_BT,
            real_BS=real_BS,
            documents_BT=documents_BT,
            packed=_flash_keywords(kwargs, documents_BT),
            mask=self._library_mask(x_BTD, real_BS, position_ids, documents_BT, past),
        )

    def _library_mask(self, x_BTD, real_BS, position_ids, documents_BT, past):
        """The mask of attention implementations that make their own, such as flex_attention."""
        if self.config._attn_implementation in ("sdpa", "eager"):
            return None
        return create_causal_mask(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=real_BS,
            position_ids=None if documents_BT is None else position_ids,
            **{CACHE_FIELD: past if documents_BT is None else None},
        )


def _flash_keywords(kwargs: dict, documents_BT) -> dict | None:
    if documents_BT is None:
        return None
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    return {name: kwargs[name] for name in names if kwargs.get(name) is not None}


def _as_dict(return_dict, config) -> bool:
    return config.return_dict if return_dict is None else return_dict


class HydraHeadForCausalLM(HydraHeadPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HydraHeadConfig):
        super().__init__(config)
        self.model = HydraHeadModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, **kwargs):
        """As in transformers, after the cache was found to be one that this model can use."""
        one_cache(kwargs.get("past_key_values"), kwargs.get("cache"))
        kwargs["inputs_embeds"] = inputs_embeds
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    @functools.wraps(GenerationMixin.generate)
    def generate(self, inputs=None, *args, **kwargs):
        prompts = (kwargs.get("inputs_embeds"), inputs, kwargs.get("input_ids"))
        prompt = next((x for x in prompts if x is not None), None)
        if torch.is_tensor(prompt):
            check_not_empty(prompt)
        return super().generate(inputs, *args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """Raises: `generate_batch` and continuous batching page keys and values only."""
        raise ValueError(
            "continuous batching is not supported, because it has no place for recurrent states; "
            "give generate() a batch padded on the left"
        )

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
        cache=None,
        **kwargs,
    ):
        """As `HydraHeadModel.forward`; `labels`, -100 where nothing is asked, give the loss.

        `logits_to_keep` is how many logits at the end to return, all if 0, or their indices.
        """
        loss_keywords = {name: kwargs.pop(name) for name in LOSS_KEYWORDS if name in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            cache=cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_keywords
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE_FIELD: outputs.get(CACHE_FIELD)},
        )
        return result if _as_dict(return_dict, self.config) else result.to_tuple()
