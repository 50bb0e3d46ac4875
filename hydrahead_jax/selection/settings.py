"""Says what a selection is asked for."""

import dataclasses
from typing import Literal

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import RECORDED_IF_SET
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.template import Template
from hydrahead_jax.selection.scores.pair_effects import MIN_PAIRS

Method = Literal["exact", "screened", "attribution", "none"]

_LONGEST = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """Says how heads are scored; direct effects are always exact: they cost about one forward pass.

    Attributes:
      pairs: counterfactual pairs of each sub-probe.
      length: tokens of a document; None is the longest the model was trained for, at most 4096.
      template: family of the needle documents; "auto" takes symbols if the tokenizer has them.
      needles: needles of the largest multi-key documents that are made of symbols.
      seed: determines all pairs and samples.
      senders: "exact" patches every head before the last receiver; "screened" those that
        attribution does not rule out, and a sample of the others; "attribution" only estimates.
      total: whether to measure total effects too, by the method of the senders.
      compare_attribution: estimate by attribution too where senders are exact; the report then has
        a table of how well the two agree.
      sender_rounds: most rounds of promoting senders to receivers.
      sample: how many of the heads that attribution ruled out are patched as a sample.
      memory_gib: memory for activations, on each device, beside the parameters; see `memory`.
      batch: pairs at a time on each device; None is as many as memory_gib allows, at most 8.
    """

    pairs: int = 8
    length: int | None = None
    template: Template = "auto"
    needles: int = 8
    seed: int = 0
    senders: Method = "exact"
    total: bool = True
    compare_attribution: bool = dataclasses.field(default=True, metadata=RECORDED_IF_SET)
    sender_rounds: int = 8
    sample: int = 32
    memory_gib: float = 8.0
    batch: int | None = None

    def length_for(self, config: ModelConfig) -> int:
        """Returns the tokens of a document for this model.

        Raises:
          UserError: they are more than the model allows.
        """
        length = self.length or min(config.max_length, _LONGEST)
        if length > config.max_length:
            raise UserError(
                f"documents of {length} tokens are longer than the {config.max_length} that the "
                "model allows; shorten them"
            )
        return length

    def __post_init__(self):
        if self.pairs < MIN_PAIRS:
            raise UserError(f"pairs={self.pairs} must be at least {MIN_PAIRS}")
        at_least = {"needles": 2, "seed": 0, "sender_rounds": 1, "sample": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.memory_gib <= 0 or (self.batch is not None and self.batch < 1):
            raise UserError(
                f"memory_gib={self.memory_gib} must be above 0 and batch={self.batch} at least 1"
            )
