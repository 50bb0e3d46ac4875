"""Says which heads of a HydraHead layer do what; all of it static."""

from typing import NamedTuple

from hydrahead_jax.config import Hydra, ModelConfig


class HydraHeads(NamedTuple):
    """Says which heads do what; indices are the teacher's.

    Attributes:
      fa: softmax heads.
      gdn: all other heads: of the delta rule, or of native hybrid attention.
      kv: KV heads that some softmax head reads.
      kv_of_fa: for each softmax head, the position of its KV head in `kv`.
      kv_of_gdn: for each of these, the KV head that it copies or reads.
      order: positions in fa + gdn that restore the teacher's order.
    """

    fa: tuple[int, ...]
    gdn: tuple[int, ...]
    kv: tuple[int, ...]
    kv_of_fa: tuple[int, ...]
    kv_of_gdn: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def kv_of_slots(self) -> tuple[int, ...]:
        """Returns the KV heads that have slots, where the other heads are native hybrids."""
        return tuple(sorted(set(self.kv_of_gdn)))


def hydra_heads(config: ModelConfig, mixer: Hydra) -> HydraHeads:
    """Splits one layer's query heads, and the KV heads with them."""
    fa = mixer.fa_heads
    gdn = tuple(n for n in range(config.query_heads) if n not in fa)
    kv = tuple(sorted({config.kv_head(n) for n in fa}))
    return HydraHeads(
        fa=fa,
        gdn=gdn,
        kv=kv,
        kv_of_fa=tuple(kv.index(config.kv_head(n)) for n in fa),
        kv_of_gdn=tuple(config.kv_head(n) for n in gdn),
        order=tuple((fa + gdn).index(n) for n in range(config.query_heads)),
    )
