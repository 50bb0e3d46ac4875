"""Defines what every mixer takes and returns."""

import dataclasses
from typing import NamedTuple

import jax

from hydrahead_jax.cache.layered import LayerCache
from hydrahead_jax.sharding import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """Says where the tokens of one call stand; computed once, read by every layer.

    Attributes:
      positions_BT: position in the document, for RoPE and the log scale.
      segment_ids_BT: document of each token; 0 is padding.
      key_segment_ids_BS: document of each key; None if all tokens are of one and none is cached.
      tail_segment_ids_BW: segments of the tokens just before token 0.
      start: index of token 0 among the keys.
      training: whether this is training; the log scale of the query may be for inference only.
      starts_BT: first tokens of all documents but a row's first; None without a layout.
      layout: how rows, tokens and heads lie on devices; None for one device.
    """

    positions_BT: jax.Array
    segment_ids_BT: jax.Array
    key_segment_ids_BS: jax.Array | None
    tail_segment_ids_BW: jax.Array
    start: jax.Array
    training: bool = dataclasses.field(metadata={"static": True})
    starts_BT: jax.Array | None = None
    layout: Layout | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadEdit:
    """Replaces head outputs before the output projection.

    mask_BN, in [0, 1], broadcasts over the batch: 0 keeps the model's own output, 1 takes the
    value. Patching, ablation and knock-out all use it.
    """

    mask_BN: jax.Array
    value_BTNH: jax.Array

    def apply(self, heads_BTNH: jax.Array) -> jax.Array:
        mask_BTNH = self.mask_BN[:, None, :, None].astype(heads_BTNH.dtype)
        value_BTNH = self.value_BTNH.astype(heads_BTNH.dtype)
        return (1 - mask_BTNH) * heads_BTNH + mask_BTNH * value_BTNH


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """Holds what softmax attention over all tokens reads.

    Attributes:
      q_BTNH: queries of the softmax heads, with their rotary embedding and log scale.
      k_BTKH: keys, as the KV cache gets them.
      v_BTKH: values, as the KV cache gets them.
      kv_head_of_query: for each of these query heads, the place of its KV head among the K.
      null_keys: number of keys of logit 0 and value 0 that every query sees too.
    """

    q_BTNH: jax.Array
    k_BTKH: jax.Array
    v_BTKH: jax.Array
    kv_head_of_query: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    null_keys: int = dataclasses.field(default=0, metadata={"static": True})


class MixerOutput(NamedTuple):
    """Carries a mixer's results.

    heads_BTNH is the input of the output projection, in the teacher's head order; statistics are
    (sum, count) pairs by name, for monitoring.
    """

    out_BTD: jax.Array
    heads_BTNH: jax.Array
    cache: LayerCache | None
    statistics: dict[str, tuple[jax.Array, jax.Array]]
