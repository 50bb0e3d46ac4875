"""Computes the ops of hybrid attention, from arrays to arrays, by reference and kernels."""

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.gradients import attention_gradients
from pallas_kernels.gated_delta.api import gated_delta, gated_delta_step
from pallas_kernels.kv_cache.api import attention_decode
from pallas_kernels.kv_cache.formats import KV_FORMATS, KVFormat
from pallas_kernels.kv_cache.packed import PackedKV
from pallas_kernels.slot_attention.api import slot_attention, slot_attention_step
from pallas_kernels.slot_attention.native_hybrid import (
    native_hybrid_attention,
    native_hybrid_attention_step,
)

__all__ = [
    "KV_FORMATS",
    "KVFormat",
    "PackedKV",
    "attention",
    "attention_decode",
    "attention_gradients",
    "gated_delta",
    "gated_delta_step",
    "native_hybrid_attention",
    "native_hybrid_attention_step",
    "slot_attention",
    "slot_attention_step",
]
