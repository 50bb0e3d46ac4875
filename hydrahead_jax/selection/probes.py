"""Counterfactual pairs: a needle document, and the same document with another value asked for."""

import dataclasses
from typing import NamedTuple

import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import (
    NEEDLE_LENGTH,
    VALUE_LENGTH,
    NeedleDocument,
    NeedleSymbols,
    needle_document,
)

_TRIES = 1000


class ProbePairs(NamedTuple):
    """Pairs x, x' of one length. They differ in the value of the asked needle, in the haystack.

    Both end with the question's key and the answer of x, so that one position of x and of x'
    predicts the same answer token. J is the length of an answer.
    """

    tokens_BT: np.ndarray
    corrupt_BT: np.ndarray
    answer_BJ: np.ndarray
    distractor_BJ: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubProbe:
    """Attributes:
    name: unique within a selection.
    needles: needles in the haystack.
    depth: the part of the haystack, in [0, 1), where the asked needle stands.
    capability: sub-probes of one capability are averaged.
    """

    name: str
    needles: int
    depth: tuple[float, float] = (0.0, 1.0)
    capability: str = "retrieval"


def retrieval_probes(needles: int, keys: int) -> tuple[SubProbe, ...]:
    """Three single-key sub-probes, by the needle's depth, and two multi-key ones, by the number
    of needles, which `keys`, the number of key symbols, caps."""
    most = min(needles, keys)
    return (
        SubProbe(name="niah_single_1", needles=1, depth=(0.0, 1 / 3)),
        SubProbe(name="niah_single_2", needles=1, depth=(1 / 3, 2 / 3)),
        SubProbe(name="niah_single_3", needles=1, depth=(2 / 3, 1.0)),
        SubProbe(name="niah_multikey_1", needles=min(max(2, most // 2), most)),
        SubProbe(name="niah_multikey_2", needles=most),
    )


def probe_pairs(
    probe: SubProbe,
    symbols: NeedleSymbols,
    haystack: np.ndarray,
    *,
    length: int,
    pairs: int,
    seed: int,
) -> ProbePairs:
    """Pairs by symmetric token replacement: a value for a value of the same token length.

    The distractor is the value of no needle, and each of its tokens differs from the answer's.
    The name of the sub-probe and the seed determine the pairs.

    Raises:
      UserError: the documents do not fit the length, the haystack or the symbols.
    """
    rng = np.random.default_rng([seed, *probe.name.encode()])
    rows = [_pair(probe, symbols, haystack, rng, length) for _ in range(pairs)]
    return ProbePairs(*(np.stack(column) for column in zip(*rows, strict=True)))


def _pair(probe: SubProbe, symbols: NeedleSymbols, haystack, rng, length: int):
    document = _document_at_depth(probe, symbols, haystack, rng, length)
    asked = document.needle_starts[document.asked[0]]
    value_J = slice(asked + 1, asked + NEEDLE_LENGTH)
    distractor_J = _distractor(document, symbols.values, rng)
    corrupt_T = document.tokens_T.copy()
    corrupt_T[value_J] = distractor_J
    return document.tokens_T, corrupt_T, document.tokens_T[value_J], distractor_J


def _document_at_depth(probe, symbols, haystack, rng, length: int) -> NeedleDocument:
    text = length - NEEDLE_LENGTH * (1 + probe.needles)
    for _ in range(_TRIES):
        try:
            document = needle_document(symbols, haystack, rng, length=length, needles=probe.needles)
        except ValueError as error:
            raise UserError(f"probe {probe.name}: {error}") from error
        index = document.asked[0]
        depth = (document.needle_starts[index] - NEEDLE_LENGTH * index) / text
        if probe.depth[0] <= depth < probe.depth[1]:
            return document
    raise UserError(
        f"probe {probe.name}: {length} tokens leave no room for a needle at depth {probe.depth}; "
        "use longer documents"
    )


def _distractor(document: NeedleDocument, values: np.ndarray, rng) -> np.ndarray:
    facts = document.needle_starts[:, None] + np.arange(1, NEEDLE_LENGTH)
    used = document.tokens_T[facts]
    answer_J = used[document.asked[0]]
    for _ in range(_TRIES if len(values) > 1 else 0):
        shift_J = rng.integers(1, len(values), size=VALUE_LENGTH)
        distractor_J = values[(np.searchsorted(values, answer_J) + shift_J) % len(values)]
        if not (used == distractor_J).all(axis=1).any():
            return distractor_J.astype(np.int32)
    raise UserError(
        f"{len(values)} value symbols leave no distractor beside {len(used)} needles; "
        "use fewer needles or a tokenizer with more value symbols"
    )
