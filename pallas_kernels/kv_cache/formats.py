"""Names the formats of a KV cache."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.kv_cache.fp8 import Fp8
from pallas_kernels.kv_cache.int4 import Int4
from pallas_kernels.kv_cache.raw import Raw
from pallas_kernels.kv_cache.side import Side
from pallas_kernels.kv_cache.turboquant import TurboQuant4
from pallas_kernels.kv_cache.ultraquant import UltraQuant


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVFormat:
    """Says how a cache stores its keys and values.

    Attributes:
      keys: format of the keys.
      values: format of the values.
      sinks: the first so many tokens of a row are read as they were given, not encoded. They are
        counted from the row's first token that is not padding.
      recent: the last so many tokens that were written are read as they were given; a token that
        leaves them is read encoded.
    """

    keys: Side
    values: Side
    sinks: int = 0
    recent: int = 0

    def __post_init__(self):
        for name in ("keys", "values"):
            if not isinstance(getattr(self, name), Side):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not the format of one side; choose a Raw, "
                    "Fp8, UltraQuant, TurboQuant4 or Int4"
                )
        for name in ("sinks", "recent"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"{name}={count!r}; choose a number of tokens, 0 or more")

    @property
    def is_raw(self) -> bool:
        """Returns whether keys and values are stored as given."""
        return isinstance(self.keys, Raw) and isinstance(self.values, Raw)

    def bytes_a_token(self, H: int, dtype=jnp.bfloat16) -> int:
        """Returns the bytes of a token's encoded key and value of one KV head."""
        return self.keys.bytes_a_vector(H, dtype) + self.values.bytes_a_vector(H, dtype)


KV_FORMATS = {
    "bf16": KVFormat(keys=Raw(), values=Raw()),
    "fp8": KVFormat(keys=Fp8(), values=Fp8()),
    "ultraquant": KVFormat(keys=UltraQuant(), values=UltraQuant(rotated=False)),
    "ultraquant-tuned": KVFormat(keys=UltraQuant(c=0.20), values=UltraQuant(c=0.20, rotated=False)),
    "turboquant4": KVFormat(keys=TurboQuant4(), values=TurboQuant4()),
    "int4": KVFormat(keys=Int4(), values=Int4()),
}
"""The formats by name; "bf16" stores whatever dtype the cache has."""


def kv_format(format: str | KVFormat) -> KVFormat:
    """Returns the format of that name, or the format itself.

    Raises:
      ValueError: no format has that name.
    """
    if isinstance(format, KVFormat):
        return format
    if format not in KV_FORMATS:
        raise ValueError(f"{format!r} is not a KV format; choose one of {', '.join(KV_FORMATS)}")
    return KV_FORMATS[format]
