"""Stores a model's cache: KV for softmax heads, constant-size states for the others."""

import dataclasses

import jax
import jax.numpy as jnp

from hydrahead_jax.cache.formats import KVFormats, layer_formats
from hydrahead_jax.config import Hydra, ModelConfig, NativeHybrid
from pallas_kernels import KVFormat, PackedKV
from pallas_kernels.slot_attention.state import SlotState, empty_state

CONV_TAPS = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Stores keys and values of the KV heads that some softmax head still reads."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array

    def append(self, k_BTKH, v_BTKH, start) -> "KVCache":
        """Writes T tokens at index `start`; the caller checks that they fit."""
        write = lambda cache, new: jax.lax.dynamic_update_slice_in_dim(
            cache, new.astype(cache.dtype), start, axis=1
        )
        return KVCache(write(self.k_BSKH, k_BTKH), write(self.v_BSKH, v_BTKH))

    def pick(self, kv_heads: tuple[int, ...]) -> "KVCache":
        """Returns the cache of these KV heads only."""
        return KVCache(
            *(x_BSKH[:, :, jnp.array(kv_heads)] for x_BSKH in (self.k_BSKH, self.v_BSKH))
        )


LayerKV = KVCache | PackedKV
"""Stores a layer's keys and values, as given or in the codes of a format."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentCache:
    """Stores the delta-rule state (float32) and the last inputs of the three convolutions."""

    state_BNHP: jax.Array
    conv_q_BWNH: jax.Array
    conv_k_BWNH: jax.Array
    conv_v_BWNP: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Stores the caches of a layer; each is None where the layer has no head of that kind.

    The waiting tokens of `slots` are those that the layer's window sees, without RoPE.
    """

    kv: LayerKV | None
    recurrent: RecurrentCache | None
    slots: SlotState | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Stores the caches of all layers and where their tokens stand.

    Attributes:
      layers: one LayerCache for each layer.
      segment_ids_BS: segment of each slot, 0 where it is empty or padding.
      tail_segment_ids_BW: segments of the last W - 1 tokens, for the convolutions.
      positions_B: position that the next token of each row takes.
      length: slots written so far, the same for all rows.
    """

    layers: list[LayerCache]
    segment_ids_BS: jax.Array
    tail_segment_ids_BW: jax.Array
    positions_B: jax.Array
    length: jax.Array

    @property
    def capacity(self) -> int:
        return self.segment_ids_BS.shape[1]


def init_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    dtype=jnp.float32,
    kv_format: KVFormats = None,
) -> Cache:
    """Makes an empty cache for `batch` rows of up to `capacity` tokens.

    Args:
      config: of the model.
      batch: rows.
      capacity: tokens of a row.
      dtype: of keys, values and convolution tails, where they are stored as given.
      kv_format: format of keys and values, of all layers or one a layer; see `layer_formats`.

    Raises:
      UserError: the model cannot have such a KV cache.
    """
    formats = layer_formats(config, kv_format)
    return Cache(
        layers=[
            _init_layer(config, layer, batch, capacity, dtype, one)
            for layer, one in enumerate(formats)
        ],
        segment_ids_BS=jnp.zeros((batch, capacity), jnp.int32),
        tail_segment_ids_BW=jnp.zeros((batch, CONV_TAPS - 1), jnp.int32),
        positions_B=jnp.zeros((batch,), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def _init_layer(
    config: ModelConfig, layer: int, batch: int, capacity: int, dtype, kv_format: KVFormat | None
) -> LayerCache:
    mixer, H = config.mixers[layer], config.head_dim
    slots = lambda kv_heads, kind: _empty_slots(batch, kv_heads, H, kind, dtype)
    if isinstance(mixer, NativeHybrid) and mixer.window is not None:
        return LayerCache(None, None, slots(config.kv_heads, mixer))
    kv_heads, gdn_heads = config.kv_heads, 0
    if isinstance(mixer, Hydra):
        kv_heads = len({config.kv_head(head) for head in mixer.fa_heads})
        gdn_heads = config.query_heads - len(mixer.fa_heads)
    kv = _empty_kv((batch, capacity, kv_heads, H), dtype, kv_format) if kv_heads else None
    recurrent = RecurrentCache(
        jnp.zeros((batch, gdn_heads, H, H), jnp.float32),
        *(jnp.zeros((batch, CONV_TAPS - 1, gdn_heads, H), dtype) for _ in range(3)),
    )
    if gdn_heads and mixer.choices.native_hybrid is not None:
        heads = (config.kv_head(n) for n in range(config.query_heads) if n not in mixer.fa_heads)
        return LayerCache(kv, None, slots(len(set(heads)), mixer.choices.native_hybrid))
    return LayerCache(kv, recurrent if gdn_heads else None)


def _empty_kv(shape: tuple[int, ...], dtype, kv_format: KVFormat | None) -> LayerKV:
    if kv_format is not None:
        return PackedKV.empty(kv_format, *shape, dtype)
    return KVCache(*(jnp.zeros(shape, dtype) for _ in range(2)))


def _empty_slots(batch: int, kv_heads: int, H: int, mixer: NativeHybrid, dtype) -> SlotState:
    shape = lambda size: jax.ShapeDtypeStruct((batch, 0, kv_heads, size), dtype)
    return empty_state(shape(H), shape(H), shape(mixer.slots), mixer.window)


def pick_slots(state: SlotState, kv_heads: tuple[int, ...]) -> SlotState:
    """Returns the state of these KV heads only."""
    heads = jnp.array(kv_heads)
    return state._replace(
        k_slots_BKMH=state.k_slots_BKMH[:, heads],
        v_slots_BKMH=state.v_slots_BKMH[:, heads],
        k_waiting_BWKH=state.k_waiting_BWKH[:, :, heads],
        v_waiting_BWKH=state.v_waiting_BWKH[:, :, heads],
        log_forget_waiting_BWKM=state.log_forget_waiting_BWKM[:, :, heads],
    )


def cache_bytes(
    config: ModelConfig, length: int, dtype=jnp.bfloat16, kv_format: KVFormats = None
) -> int:
    """Returns the bytes of keys, values and states that one sequence of `length` tokens holds."""
    make = lambda: jax.tree.leaves(init_cache(config, 1, length, dtype, kv_format).layers)
    leaves = jax.eval_shape(make)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
