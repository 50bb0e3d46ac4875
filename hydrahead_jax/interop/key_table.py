"""Maps Hugging Face weight names to our parameters, in one table for import and export."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from hydrahead_jax.config import Hydra, ModelConfig, NativeHybrid
from hydrahead_jax.interop.layouts import (
    DepthwiseConv,
    Heads,
    HeadVector,
    Layout,
    OutputHeads,
    Same,
    Transposed,
)
from hydrahead_jax.models import abstract_params

ParamPath = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """Maps one Hugging Face weight to our parameters.

    Attributes:
      name: name of the weight.
      paths: paths of the parameters that it holds.
      layout: conversion between the two.
      always_float32: rounding it to bfloat16 would change all of a head or its memory span.
    """

    name: str
    paths: tuple[ParamPath, ...]
    layout: Layout
    always_float32: bool = False


def key_table(config: ModelConfig) -> list[Row]:
    """Lists every weight of a model, in the order of the layers; names as in transformers' Qwen3.

    A hybrid layer has the names of Qwen3's attention below `self_attn.fa` and `self_attn.gdn`,
    or below `self_attn` where the branches share one projection. Its `o_proj` is one matrix. A
    native hybrid layer has Qwen3's names, the gates of its slots as `self_attn.g_proj`, and its
    output norm as `self_attn.g_norm`; native hybrid heads of a HydraHead layer stand below
    `self_attn.slots`.
    """
    rows = [Row("model.embed_tokens.weight", (("w_embed_VD",),), Same())]
    for layer, mixer in enumerate(config.mixers):
        rows += _block_rows(layer)
        if isinstance(mixer, Hydra):
            rows += _hydra_rows(config, layer, mixer)
            continue
        if isinstance(mixer, NativeHybrid):
            rows += _native_hybrid_rows(config, layer, mixer)
            continue
        rows += _full_attention_rows(config, layer)
    rows.append(Row("model.norm.weight", (("final_norm_D",),), Same()))
    if not config.tied_embeddings:
        rows.append(Row("lm_head.weight", (("w_unembed_DV",),), Transposed()))
    return rows


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every weight, by name; allocates nothing."""
    params = abstract_params(config)
    ours = lambda row: tuple(get_param(params, path).shape for path in row.paths)
    return {row.name: _saved_shape(row.layout, ours(row)) for row in key_table(config)}


@functools.cache
def _saved_shape(layout: Layout, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.eval_shape(layout.save, *params).shape


def get_param(params: dict, path: ParamPath):
    """Returns the parameter at `path`."""
    for key in path:
        params = params[key]
    return params


def set_param(params: dict, path: ParamPath, value) -> None:
    """Puts `value` at `path`, making the dicts on the way."""
    for key in path[:-1]:
        params = params.setdefault(key, {})
    params[path[-1]] = value


def _block_rows(layer: int) -> Iterator[Row]:
    names = {
        "input_layernorm": (("mixer_norm_D",), Same()),
        "post_attention_layernorm": (("mlp_norm_D",), Same()),
        "mlp.gate_proj": (("mlp", "w_gate_DF"), Transposed()),
        "mlp.up_proj": (("mlp", "w_up_DF"), Transposed()),
        "mlp.down_proj": (("mlp", "w_down_FD"), Transposed()),
    }
    for name, (path, layout) in names.items():
        yield Row(f"model.layers.{layer}.{name}.weight", (("layers", layer, *path),), layout)


def _native_hybrid_rows(config: ModelConfig, layer: int, mixer: NativeHybrid) -> Iterator[Row]:
    name, path = _roots(layer)
    yield from _full_attention_rows(config, layer, norm=mixer.qk_norm)
    if mixer.window is not None:
        gates = ((*path, "w_gate_slots_DKM"),)
        yield Row(f"{name}.g_proj.weight", gates, Heads(mixer.slots))
    if mixer.output_norm:
        yield Row(f"{name}.g_norm.weight", ((*path, "out_norm_NH"),), HeadVector(config.head_dim))


def _full_attention_rows(config: ModelConfig, layer: int, *, norm: bool = True) -> Iterator[Row]:
    name, path = _roots(layer)
    yield from _projection_rows(config, name, path, norm=norm)
    heads = (tuple(range(config.query_heads)),)
    layout = OutputHeads(config.head_dim, heads)
    yield Row(f"{name}.o_proj.weight", ((*path, "w_o_NHD"),), layout)


def _hydra_rows(config: ModelConfig, layer: int, mixer: Hydra) -> Iterator[Row]:
    name, path = _roots(layer)
    choices = mixer.choices
    gdn = tuple(n for n in range(config.query_heads) if n not in mixer.fa_heads)
    other = "gdn" if choices.native_hybrid is None else "slots"
    branches = {kind: h for kind, h in (("fa", mixer.fa_heads), (other, gdn)) if h}
    if not choices.query_decomposition:
        yield from _projection_rows(config, name, path)
    for kind in branches:
        if choices.query_decomposition:
            yield from _projection_rows(config, f"{name}.{kind}", (*path, kind))
        gate = ((*path, kind, "w_gate_DNH"),)
        yield Row(f"{name}.{kind}.g_proj.weight", gate, Heads(config.head_dim))
        if choices.fusion != "none":
            yield Row(f"{name}.{kind}.o_norm.weight", ((*path, kind, "out_norm_H"),), Same())
            yield Row(f"{name}.{kind}.gamma", ((*path, kind, "gamma_N"),), Same(), True)
    if gdn and choices.native_hybrid is not None:
        gates = ((*path, "slots", "w_gate_slots_DKM"),)
        layout = Heads(choices.native_hybrid.slots)
        yield Row(f"{name}.slots.slot_gate_proj.weight", gates, layout)
    elif gdn:
        yield from _delta_rows(config, f"{name}.gdn", (*path, "gdn"), choices.short_conv)
    if choices.fusion == "gated":
        yield Row(f"{name}.fusion_proj.weight", ((*path, "w_fusion_DX"),), Transposed())
    layout = OutputHeads(config.head_dim, tuple(branches.values()))
    yield Row(f"{name}.o_proj.weight", tuple((*path, k, "w_o_NHD") for k in branches), layout)


def _delta_rows(config: ModelConfig, name: str, path: ParamPath, conv: bool) -> Iterator[Row]:
    for letter in "qkv" if conv else "":
        taps = ((*path, f"conv_{letter}_WNH"),)
        yield Row(f"{name}.{letter}_conv.weight", taps, DepthwiseConv(config.head_dim))
    yield Row(f"{name}.a_proj.weight", ((*path, "w_a_DN"),), Transposed())
    yield Row(f"{name}.b_proj.weight", ((*path, "w_b_DN"),), Transposed())
    yield Row(f"{name}.a_log", ((*path, "a_log_N"),), Same(), True)
    yield Row(f"{name}.dt_bias", ((*path, "dt_bias_N"),), Same(), True)


def _projection_rows(
    config: ModelConfig, name: str, path: ParamPath, *, norm: bool = True
) -> Iterator[Row]:
    for letter, param in (("q", "w_q_DNH"), ("k", "w_k_DKH"), ("v", "w_v_DKH")):
        heads = Heads(config.head_dim)
        yield Row(f"{name}.{letter}_proj.weight", ((*path, "qkv", param),), heads)
    for letter in "qk" if norm else "":
        yield Row(f"{name}.{letter}_norm.weight", ((*path, "qkv", f"{letter}_norm_H"),), Same())


def _roots(layer: int) -> tuple[str, ParamPath]:
    return f"model.layers.{layer}.self_attn", ("layers", layer, "mixer")
