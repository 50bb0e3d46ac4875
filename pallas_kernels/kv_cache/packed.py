"""Stores the keys and values of a layer in a format; how they lie in memory is known here alone."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.kv_cache.formats import KVFormat, kv_format
from pallas_kernels.kv_cache.raw import Raw
from pallas_kernels.kv_cache.raw_tokens import RawTokens, empty_raw_tokens
from pallas_kernels.kv_cache.side import Side


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedKV:
    """Stores keys and values of S slots in the parts of a format.

    The parts of an encoded side lie as [B, K, X, S], positions last; vectors stored as given lie as
    [B, S, K, H], as `attention_decode` reads them without a format.

    Attributes:
      keys: the parts of the keys.
      values: the parts of the values.
      raw: the tokens that are read as they were given; None if the format has none.
    """

    keys: tuple
    values: tuple
    raw: RawTokens | None
    format: KVFormat = dataclasses.field(metadata={"static": True})
    head_dim: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def empty(
        cls,
        format: str | KVFormat,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        dtype=jnp.float32,
    ) -> "PackedKV":
        """Makes a cache without tokens; `dtype` is that of tokens that are stored as given.

        Raises:
          ValueError: the format is unknown, or does not take heads of that dimension.
        """
        format = kv_format(format)
        vectors = jax.ShapeDtypeStruct((batch, capacity, kv_heads, head_dim), dtype)

        def parts(side: Side):
            shapes = jax.eval_shape(lambda x: _to_memory(side, side.encode(x)), vectors)
            return tuple(jnp.zeros(part.shape, part.dtype) for part in shapes)

        raw, tokens = None, (format.sinks, format.recent)
        if any(tokens) and not format.is_raw:
            raw = empty_raw_tokens(batch, kv_heads, head_dim, *tokens, dtype)
        keys, values = parts(format.keys), parts(format.values)
        return cls(keys=keys, values=values, raw=raw, format=format, head_dim=head_dim)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Returns rows, slots, KV heads and head dimension: B, S, K, H."""
        sizes = self.keys[0].shape
        B, S, K = sizes[:3] if isinstance(self.format.keys, Raw) else (sizes[0], sizes[3], sizes[1])
        return B, S, K, self.head_dim

    def append(self, k_BTKH, v_BTKH, start, real_BT=None) -> "PackedKV":
        """Writes T tokens at index `start`; the caller checks that they fit.

        Args:
          k_BTKH: keys after their rotary embedding; they are encoded from the dtype they have.
          v_BTKH: values.
          start: slot of the first token, at most the number of slots written before.
          real_BT: False for padding before a row's first token, where the format has sinks.
        """
        if real_BT is None:
            real_BT = jnp.ones(k_BTKH.shape[:2], bool)
        raw = self.raw and self.raw.append(k_BTKH, v_BTKH, start, real_BT)
        keys = _written(self.format.keys, self.keys, k_BTKH, start)
        values = _written(self.format.values, self.values, v_BTKH, start)
        return dataclasses.replace(self, keys=keys, values=values, raw=raw)

    def pick(self, kv_heads: tuple[int, ...]) -> "PackedKV":
        """Returns the cache of these KV heads only."""
        heads = jnp.array(kv_heads)

        def of_heads(side: Side, parts):
            axis = 2 if isinstance(side, Raw) else 1
            return tuple(jnp.take(part, heads, axis=axis) for part in parts)

        return dataclasses.replace(
            self,
            keys=of_heads(self.format.keys, self.keys),
            values=of_heads(self.format.values, self.values),
            raw=self.raw and self.raw.pick(heads),
        )

    def stored(self, dtype) -> tuple[jax.Array, jax.Array]:
        """Returns encoded keys and values [B, K, S, H] in the bases in which they are stored.

        Slots whose tokens are read as given hold encoded ones here.
        """
        k, v = self._parts(2)
        return self.format.keys.stored(k, dtype), self.format.values.stored(v, dtype)

    def decoded(self, dtype) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values [B, S, K, H] in the original basis, as a query sees them."""
        k, v = self._parts(1)
        k_BSKH, v_BSKH = self.format.keys.decode(k), self.format.values.decode(v)
        if self.raw is not None:
            k_BSKH, v_BSKH = self.raw.put_into(k_BSKH, v_BSKH)
        return k_BSKH.astype(dtype), v_BSKH.astype(dtype)

    def slots(self) -> jax.Array:
        """Returns the bytes [B, S, K, X] of each token and KV head, one after the other.

        They are the codes of the key, its scales, the codes of the value, its scales: for
        "ultraquant" a slot of vLLM's `ultraquant_4bit`.
        """
        k, v = self._parts(1)
        return jnp.concatenate([_bytes(part) for part in (*k, *v)], axis=-1)

    def _parts(self, positions: int):
        """Returns the parts of keys and values with positions at axis 1 or 2, channels last."""
        return (
            _from_memory(self.format.keys, self.keys, positions),
            _from_memory(self.format.values, self.values, positions),
        )


def _to_memory(side: Side, parts):
    """Puts parts [B, T, K, X] into the order in which they lie in memory."""
    return parts if isinstance(side, Raw) else tuple(jnp.transpose(x, (0, 2, 3, 1)) for x in parts)


def _from_memory(side: Side, parts, positions: int):
    here, order = (1, (0, 2, 1, 3)) if isinstance(side, Raw) else (3, (0, 1, 3, 2))
    if positions == 1:
        order = (0, 3, 1, 2)
    return parts if here == positions else tuple(jnp.transpose(x, order) for x in parts)


def _written(side: Side, parts, new_BTKH, start):
    axis = 1 if isinstance(side, Raw) else 3
    write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
        old, new.astype(old.dtype), start, axis=axis
    )
    return tuple(map(write, parts, _to_memory(side, side.encode(new_BTKH))))


def _bytes(part):
    if part.dtype.itemsize > 1:
        part = jax.lax.bitcast_convert_type(part, jnp.uint8)
        return part.reshape(*part.shape[:-2], -1)
    return jax.lax.bitcast_convert_type(part, jnp.uint8)
