"""Says what to measure of the formats of a KV cache."""

import dataclasses

from hydrahead_jax.cache import check_names
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.needle_questions import RULER_REPLY
from hydrahead_jax.evals.template import Template
from pallas_kernels import KV_FORMATS

RAW, TUNED_FROM, BY_LAYER = "bf16", "ultraquant", "ultraquant-by-layer"
_C_GRID = (0.125, 0.14, 0.156, 0.17, 0.18, 0.19, 0.2, 0.21, 0.22, 0.23, 0.24, 0.25, 0.28)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVReportSettings:
    """Says what to measure.

    Attributes:
      formats: names of formats. With "ultraquant" among them another one is made and measured:
        "ultraquant-by-layer", whose c is tuned for the keys and for the values of each layer.
      c_grid: values of c to choose from.
      length: tokens of a stretch of text; the model's trained length if None.
      calibration: stretches of text whose keys and values are compared, and c is tuned on.
      windows: stretches of other text, for the loss and the KL divergence.
      needle_lengths: lengths of needle documents; once, twice and four times the model's trained
        length if empty.
      template: the family of the needle documents; "auto" chooses it by the tokenizer.
      documents: needle documents for each length and kind.
      needles: needles of a document of several.
      reply: tokens of a reply to RULER's documents, which count towards their length.
      batch: stretches or documents a pass.
      prefill_chunk: prompt tokens a pass. Tokens before the last chunk are read as the cache stores
        them, those of the chunk as given.
      outlier: a head's channel stands out if its root mean square is this many times the median of
        the head's channels.
      seed: seed of the needle documents.
    """

    formats: tuple[str, ...] = tuple(KV_FORMATS)
    c_grid: tuple[float, ...] = _C_GRID
    length: int | None = None
    calibration: int = 8
    windows: int = 16
    needle_lengths: tuple[int, ...] = ()
    template: Template = "auto"
    documents: int = 64
    needles: int = 8
    reply: int = RULER_REPLY
    batch: int = 8
    prefill_chunk: int = 32
    outlier: float = 4.0
    seed: int = 0

    def __post_init__(self):
        check_names(self.formats)
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise UserError(
                f"formats={list(self.formats)} must name at least one format, and each only once"
            )
        for name in ("calibration", "windows", "documents", "needles", "reply", "batch"):
            _check(name, getattr(self, name), 1)
        _check("prefill_chunk", self.prefill_chunk, 1)
        if self.length is not None:
            _check("length", self.length, 2)
        if not self.c_grid or not all(0 < c <= 0.5 for c in self.c_grid):
            raise UserError(f"c_grid={list(self.c_grid)} must hold numbers above 0 and at most 0.5")


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name}={value} must be {least} or more")
