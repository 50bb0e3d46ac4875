"""Makes sub-probes: they say which counterfactual pairs heads are scored on."""

import dataclasses
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.ruler import RULER_TASKS, RulerTask
from hydrahead_jax.evals.template import Family
from hydrahead_jax.selection.probes.pairs import ProbePairs as ProbePairs
from hydrahead_jax.selection.probes.ruler import ruler_pairs
from hydrahead_jax.selection.probes.symbols import SymbolNeedles, symbol_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubProbe:
    """Says which counterfactual pairs heads are scored on.

    Attributes:
      name: unique within a selection.
      capability: sub-probes of one capability are averaged.
      counterfactual: what differs in x': the value of the asked needle, the keys of two needles, or
        the complete prompt.
      documents: what the pairs are made of; None for pairs that were read from a file.
    """

    name: str
    capability: str = "retrieval"
    counterfactual: Literal["value", "keys", "prompt"] = "value"
    documents: SymbolNeedles | RulerTask | None = None


def retrieval_probes(template: Family, *, needles: int = 8) -> tuple[SubProbe, ...]:
    """Returns three sub-probes of one needle, two of several, and these two with keys swapped.

    Args:
      template: the family of needle documents.
      needles: needles of the largest documents of symbols; RULER's documents have its numbers.
    """
    documents = RULER_TASKS if template == "ruler" else _symbol_documents(needles)
    probes = [SubProbe(name=name, documents=made_of) for name, made_of in documents.items()]
    swapped = [
        dataclasses.replace(probe, name=f"{probe.name}_keys", counterfactual="keys")
        for probe in probes
        if "multikey" in probe.name
    ]
    return (*probes, *swapped)


def probe_pairs(
    probe: SubProbe,
    tokenizer: Tokenizer,
    haystack: Haystack | np.ndarray,
    *,
    length: int,
    pairs: int,
    seed: int,
) -> ProbePairs:
    """Makes the pairs of a sub-probe; its name and the seed determine them.

    Args:
      probe: one of `retrieval_probes`.
      tokenizer: of the model.
      haystack: real text; tokens alone are enough for symbols.
      length: tokens of a document, its answer included.
      pairs: how many.
      seed: seed of the draws.

    Raises:
      UserError: the pairs cannot be made; says what to change.
      ValueError: the sub-probe was read from a file.
    """
    rng = np.random.default_rng([seed, *probe.name.encode()])
    how = (probe.counterfactual, tokenizer, Haystack.of(haystack), rng)
    try:
        match probe.documents:
            case SymbolNeedles() as needles:
                return symbol_pairs(needles, *how, length=length, pairs=pairs)
            case RulerTask() as task:
                return ruler_pairs(task, *how, length=length, pairs=pairs)
    except UserError as error:
        raise UserError(f"probe {probe.name}: {error}") from error
    raise ValueError(f"probe {probe.name} does not say what its pairs are made of")


def _symbol_documents(needles: int) -> dict[str, SymbolNeedles]:
    """Returns a single needle in each third of the haystack, half the needles, and all."""
    return {
        "niah_single_1": SymbolNeedles(needles=1, depth=(0.0, 1 / 3)),
        "niah_single_2": SymbolNeedles(needles=1, depth=(1 / 3, 2 / 3)),
        "niah_single_3": SymbolNeedles(needles=1, depth=(2 / 3, 1.0)),
        "niah_multikey_1": SymbolNeedles(needles=max(2, needles // 2)),
        "niah_multikey_2": SymbolNeedles(needles=needles),
    }
