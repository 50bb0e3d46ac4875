"""Runs HydraHead in PyTorch: softmax heads and gated-delta-rule heads in the same layer.

Paper: "HydraHead" (arXiv 2606.20097); the delta rule: "Gated Delta Networks" (arXiv 2412.06464).
Layers may also be native hybrid attention (arXiv 2510.07019): a window of tokens, and slots.
Needs PyTorch and transformers only. tokens_hydrahead.py explains the letters at the end of names.
"""

import functools
import math

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import logging

# Older versions of transformers copy only the files that this one imports.
from .attention_hydrahead import GroupedAttention  # noqa: F401
from .cache_hydrahead import CACHE_FIELD, check_cache_implementation, one_cache, prepare
from .configuration_hydrahead import HydraHeadConfig
from .convolution_hydrahead import ShortConvolution  # noqa: F401
from .delta_rule_hydrahead import delta_rule  # noqa: F401
from .documents_hydrahead import find_documents  # noqa: F401
from .inputs_hydrahead import read_tokens
from .kernels_hydrahead import delta_rule as fast_delta_rule  # noqa: F401
from .keywords_hydrahead import LOSS_KEYWORDS, check_keywords, check_not_empty
from .kv_formats_hydrahead import FORMATS  # noqa: F401
from .layers_hydrahead import HydraHeadLayer
from .mixers_hydrahead import Branch, DeltaHeads, RMSNorm
from .native_hybrid_hydrahead import NativeHybridAttention  # noqa: F401
from .packed_hydrahead import layer_formats
from .slots_hydrahead import attend  # noqa: F401
from .tokens_hydrahead import Tokens  # noqa: F401
from .window_hydrahead import window_and_slots  # noqa: F401

logger = logging.get_logger(__name__)


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
        """Starts gates at one, the convolution as the identity, decay as in Gated DeltaNet."""
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
        layer_formats(config)  # refuses a kv_cache that the model cannot have
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
        kv_cache=None,
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
          kv_cache: format of the keys and values of a cache that this call makes or begins to fill;
            the config's if None.
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
        past, use_cache = self._cache(past, use_cache, kv_cache)
        tokens = read_tokens(self.config, x_BTD, attention_mask, position_ids, past, kwargs)
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

    def _cache(self, past, use_cache, kv_cache):
        """Returns (the cache to fill, whether to return it): "asked" if the caller said so."""
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
            prepare(past, self.config, kv_cache)
        return past, use_cache and ("asked" if asked else "default")


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
        """Calls transformers' method after checking that this model can use the cache."""
        one_cache(kwargs.get("past_key_values"), kwargs.get("cache"))
        kwargs["inputs_embeds"] = inputs_embeds
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    @functools.wraps(GenerationMixin.generate)
    def generate(self, inputs=None, *args, **kwargs):
        prompts = (kwargs.get("inputs_embeds"), inputs, kwargs.get("input_ids"))
        prompt = next((x for x in prompts if x is not None), None)
        if torch.is_tensor(prompt):
            check_not_empty(prompt)
        check_cache_implementation(kwargs, self.generation_config)
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
        kv_cache=None,
        **kwargs,
    ):
        """Runs `HydraHeadModel.forward` and computes logits; `labels` give the loss.

        Labels are -100 where nothing is asked. `logits_to_keep` is how many logits at the end to
        return, all if 0, or their indices.
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
            kv_cache=kv_cache,
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
