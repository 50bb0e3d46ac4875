"""Bounds from below what prefill and decode steps of a model take on a chip."""

import dataclasses
import math

import jax

from benchmarks.turns.cache_size import CacheSize
from hydrahead_jax.cache import KVFormats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import abstract_params
from pallas_kernels.hardware.chips import Chip
from train.stage.flops import forward_flops

_LENGTHS = (1024, 2048)
_BYTES_A_WEIGHT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Counts FLOP and bytes of a model whose caches have one format.

    A pass takes as long as its FLOP at the peak of the matrix units, or its bytes at the full
    bandwidth, whichever is more. FLOP are those of `train.stage.flops`: token t of a sequence takes
    `flops` + `flops_a_key` t of them, logits included.

    Attributes:
      chip: its peaks.
      weights: bytes of all parameters, in bfloat16; every pass reads them once.
      size: bytes of a sequence's cache.
      flops: of a token without earlier ones.
      flops_a_key: of a token for each earlier one.
      logits: FLOP of a token's logits.
    """

    chip: Chip
    weights: int
    size: CacheSize
    flops: float
    flops_a_key: float
    logits: float

    @classmethod
    def of(cls, config: ModelConfig, kv_format: KVFormats, chip: Chip) -> "Costs":
        """Counts those of a model; its windows, if it has any, must be no longer than 1024."""
        short, long = _LENGTHS
        # A row of T tokens takes T (flops + flops_a_key (T - 1) / 2).
        means = [forward_flops(config, length) for length in _LENGTHS]
        flops_a_key = 2 * (means[1] - means[0]) / (long - short)
        params = jax.tree.leaves(abstract_params(config))
        return cls(
            chip=chip,
            weights=_BYTES_A_WEIGHT * sum(math.prod(leaf.shape) for leaf in params),
            size=CacheSize.of(config, kv_format),
            flops=means[0] - flops_a_key * (short - 1) / 2,
            flops_a_key=flops_a_key,
            logits=2 * config.embed * config.vocab,
        )

    def prefill_s(self, cached: int, new: int) -> float:
        """Returns the seconds to read `new` tokens after `cached` ones, for one row of logits."""
        keys = new * cached + new * (new - 1) / 2
        flops = new * (self.flops - self.logits) + self.logits + self.flops_a_key * keys
        moved = self.weights + self._moved(1, cached + new)
        return self.chip.floor_s(flops, moved)

    def decode_s(self, sequences: int, tokens: int) -> float:
        """Returns the seconds of one token of each sequence, with so many cached tokens in all."""
        flops = sequences * self.flops + self.flops_a_key * tokens
        moved = self.weights + self._moved(sequences, tokens + sequences)
        return self.chip.floor_s(flops, moved)

    def _moved(self, sequences: int, tokens: int) -> float:
        """Returns the bytes of caches in a pass: states are read and written."""
        return 2.0 * sequences * self.size.state + self.size.token * tokens
