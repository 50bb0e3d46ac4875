"""Counts FLOP of a training step: what the model needs, and what matrix units must do at least.

A multiply-add is 2 FLOP. Counted are products with weights (convolution taps among them), softmax
attention over the keys that a query sees in a row that is one document, the delta rule, and slots.
Not counted are elementwise work and the optimizer. Rows that hold several documents need less
attention than this says: how long documents are is not known beforehand.

    softmax attention, a query head, query and key           4 H       backward  8 H
    delta rule, a head and token: S k, v k^T, S q            6 H P     backward 12 H P
    slots, a query head and token: logits and values         4 M H     backward  8 M H
    slots, a KV head and token: s k^T, s v^T                 4 M H     backward  8 M H

The model's count takes the delta rule and slots by their recurrences and counts nothing twice, so
that no chunk length and no recomputation looks better than another. Matrix units do more: they run
both in chunks, attention computes its scores again in the backward pass, and `remat` computes most
of a layer again. `StepFlops.at_least` counts these; the first two are counted as in the kernels'
report.
"""

import functools
import math
import re
from typing import NamedTuple

from hydrahead_jax.config import Hydra, ModelConfig, NativeHybrid
from hydrahead_jax.models import abstract_params
from hydrahead_jax.models.params import layer_config
from pallas_kernels.gated_delta.shapes import Shape
from pallas_kernels.report import gated_delta as delta_report
from pallas_kernels.report import slot_attention as slots_report
from pallas_kernels.slot_attention.shapes import Shape as SlotsShape
from train.files.param_paths import flatten
from train.stage.stage import Stage

# Where in a layer each parameter is used, in order.
_PLACES = (
    r"mixer_norm_D",
    r"mixer/(.*/)?w_(q_DNH|k_DKH|v_DKH|gate_DNH|gate_slots_DKM|a_DN|b_DN|fusion_DX)",
    r"mixer/(.*/)?(conv_\w+|[qk]_norm_H|a_log_N|dt_bias_N)",
    r"mixer/(.*/)?(out_norm_N?H|gamma_N)",
    r"mixer/(.*/)?w_o_NHD",
    r"mlp_norm_D",
    r"mlp/w_(gate|up)_DF",
    r"mlp/w_down_FD",
)
_MIXER_IN, _HEADS, _MIXER_OUT, _END = 1, 3, 4, len(_PLACES)


class StepFlops(NamedTuple):
    """Counts the FLOP of one optimizer step, on all devices together.

    Attributes:
      model: what the model needs.
      at_least: what matrix units must do, see above.
      parts: parts of `model`, by kind of work; the teacher's forward pass is one kind.
    """

    model: float
    at_least: float
    parts: dict[str, float]


class _Work(NamedTuple):
    """Counts the FLOP per token of one kind of work in a layer.

    Attributes:
      kind: name of the kind.
      place: place in the layer; the work reads what was made at earlier places.
      path: path of the weight within the layer; None for attention and the delta rule.
      forward: FLOP that the model needs in the forward pass.
      more_forward: FLOP that matrix units do beyond `forward`.
      more_backward: FLOP that they do beyond the gradients of `forward`.
    """

    kind: str
    place: int
    path: str | None
    forward: float
    more_forward: float = 0.0
    more_backward: float = 0.0


def train_flops(stage: Stage, config: ModelConfig, teacher_config: ModelConfig | None) -> float:
    """Returns the FLOP that the model needs for a step, for the utilisation of the devices."""
    return step_flops(stage, config, teacher_config).model


def step_flops(stage: Stage, config: ModelConfig, teacher_config: ModelConfig | None) -> StepFlops:
    """Counts the FLOP of a step of a stage.

    Args:
      stage: its trainable parameters decide which gradients there are.
      config: config of the model that is trained.
      teacher_config: None where no teacher runs.
    """
    tokens = stage.data.batch * stage.data.length
    parts: dict[str, float] = {}
    more = 0.0
    for kind, model, extra in _student(stage, config):
        parts[kind] = parts.get(kind, 0.0) + tokens * model
        more += tokens * extra
    if stage.loss != "next_token" and stage.teacher_cache is None and teacher_config is not None:
        parts["teacher"] = tokens * _teacher(stage, teacher_config)
    model = sum(parts.values())
    return StepFlops(model, model + more, parts)


def forward_flops(config: ModelConfig, length: int) -> float:
    """Counts FLOP per token of a forward pass over rows of `length` tokens, logits included."""
    layers = (_layer(layer_config(config, i), length) for i in range(config.layers))
    return sum(work.forward for layer in layers for work in layer) + _logits(config)


def _teacher(stage: Stage, config: ModelConfig) -> float:
    """Counts FLOP per token of the teacher; aligning needs neither the last MLP nor logits."""
    flops = forward_flops(config, stage.data.length)
    unused = _logits(config) + 6 * config.embed * config.mlp
    return flops - unused if stage.loss == "align" else flops


def _logits(config: ModelConfig) -> float:
    return 2 * config.embed * config.vocab


def _student(stage: Stage, config: ModelConfig):
    """Yields (kind, FLOP per token of the model, what matrix units do beyond it)."""
    trained = lambda path: re.fullmatch(stage.trainable, path) is not None
    align = stage.loss == "align"
    from_below = not align and trained("w_embed_VD")
    for index in range(config.layers):
        layer = layer_config(config, index)
        mine = lambda path, entry=f"layers/{index}/": path is not None and trained(entry + path)
        places = [at for path, at in _places(layer).items() if mine(path)]
        if align:  # Each mixer is fed the teacher's input, through which no gradient flows.
            places = [at for at in places if _MIXER_IN <= at <= _MIXER_OUT]
        first = -1 if from_below else min(places, default=_END)
        last = _MIXER_OUT if align else _END - 1
        for work in _layer(layer, stage.data.length):
            if work.place <= last:
                again = stage.remat if first <= work.place < last else "none"
                yield _with_gradients(work, first < work.place, mine(work.path), again)
        from_below = not align and first < _END
    if not align:
        name = "w_embed_VD" if config.tied_embeddings else "w_unembed_DV"
        logits = _Work("unembedding", _END, name, _logits(config))
        yield _with_gradients(logits, from_below or trained("final_norm_D"), trained(name), "none")


def _with_gradients(work: _Work, upstream: bool, weight: bool, remat: str):
    """Counts `work` with the gradients that are needed: of its inputs, of its weight."""
    is_core = work.path is None
    gradients = upstream * (2 if is_core else 1) + weight
    more = work.more_forward + work.more_backward * upstream
    if remat == "full" or (remat == "kernels" and not is_core):
        more += work.forward + work.more_forward
    return work.kind, work.forward * (1 + gradients), more


@functools.cache
def _places(config: ModelConfig) -> dict[str, int]:
    """Returns where each path of a one-layer model is used; paths are within the layer."""
    paths = [path.partition("/0/")[2] for path in flatten(abstract_params(config))]
    at = lambda path: next(i for i, place in enumerate(_PLACES) if re.fullmatch(place, path))
    return {path: at(path) for path in paths if path}


@functools.cache
def _layer(config: ModelConfig, length: int) -> tuple[_Work, ...]:
    """Lists all work of a model that has one layer only."""
    params = {path.partition("/0/")[2]: x for path, x in flatten(abstract_params(config)).items()}
    mixer = config.mixers[0]
    found = [_softmax(config, len(config.softmax_heads(0)), length, length)]
    if others := config.slot_heads(0):
        slots = mixer.choices.native_hybrid if isinstance(mixer, Hydra) else mixer
        found += _native_hybrid(config, slots, length, others)
    else:
        found.append(_delta(config))
    for path, place in _places(config).items():
        name = path.rpartition("/")[2]
        if name.startswith(("w_", "conv_")):
            kind = "mlp" if path.startswith("mlp/") else "projections"
            kind = "convolution" if name.startswith("conv_") else kind
            found.append(_Work(kind, place, path, 2 * math.prod(params[path].shape)))
    return tuple(found)


def _native_hybrid(
    config: ModelConfig, mixer: NativeHybrid, length: int, heads: tuple[int, ...]
) -> list[_Work]:
    kv_heads = len({config.kv_head(head) for head in heads})
    sizes = {"slots": mixer.slots, "head_size": config.head_dim}
    shape = SlotsShape(tokens=1, heads=len(heads), kv_heads=kv_heads, **sizes)
    model = 4 * mixer.slots * config.head_dim * (len(heads) + kv_heads)
    return [
        _softmax(config, len(heads), length, min(mixer.window, length)),
        _in_chunks("slots", slots_report, shape, model),
    ]


def _softmax(config: ModelConfig, heads: int, length: int, window: int) -> _Work:
    """Counts the work of query heads that see the nearest `window` tokens of a row."""
    keys = (window * length - window * (window - 1) / 2) / length
    size = heads * keys * config.head_dim
    return _Work("softmax attention", _HEADS, None, 4 * size, more_backward=2 * size)


def _delta(config: ModelConfig) -> _Work:
    heads = config.query_heads - len(config.softmax_heads(0))
    shape = Shape(tokens=1, heads=heads, key_heads=heads, head_size=config.head_dim)
    return _in_chunks("delta rule", delta_report, shape, 6 * config.head_dim**2 * heads)


def _in_chunks(kind: str, report, shape, model: float) -> _Work:
    """Counts a recurrence that kernels run in chunks, by their report and by the model's count."""
    forward = report.flops(shape, "forward")
    both = report.flops(shape, "forward+backward")
    return _Work(kind, _HEADS, None, model, forward - model, both - forward - 2 * model)
