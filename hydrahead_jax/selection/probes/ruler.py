"""Makes counterfactual pairs of needle documents in the words of RULER."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.ruler import RulerDocument, RulerTask
from hydrahead_jax.evals.ruler_facts import Fact, FactSource
from hydrahead_jax.evals.ruler_length import fitting_units
from hydrahead_jax.selection.probes.pairs import PairRow, ProbePairs, stack_pairs
from hydrahead_jax.selection.probes.token_rows import UnequalTokens, token_ids, token_row

_TRIES = 300


class _Draft(NamedTuple):
    """Joins a document, its counterfactual's facts, and the pair in the smallest haystack."""

    document: RulerDocument
    other_facts: tuple[Fact, ...]
    distractor: str
    smallest: PairRow


def ruler_pairs(
    task: RulerTask,
    counterfactual: Literal["value", "keys"],
    tokenizer: Tokenizer,
    haystack: Haystack,
    rng: np.random.Generator,
    *,
    length: int,
    pairs: int,
) -> ProbePairs:
    """Makes pairs whose values differ in every character that their form leaves free.

    By "value" the distractor is the value of no needle; by "keys" it is that of the needle whose
    key changes places with the asked one. Facts are drawn until x and x' have the same number of
    tokens and differ in those of the changed keys or values only.

    Raises:
      UserError: the tokenizer makes no such pair, the documents do not fit the length, the
        haystack has no text, or wonderwords is not installed.
    """
    drafts = [_draft(task, counterfactual, tokenizer, haystack, rng) for _ in range(pairs)]
    J = max(len(draft.smallest.answer) for draft in drafts)
    units = fitting_units(
        [draft.document for draft in drafts],
        tokenizer,
        length=length,
        after_prompt=[J + _moved(tokenizer, draft) for draft in drafts],
    )
    rows = [_grown(tokenizer, draft, most) for draft, most in zip(drafts, units, strict=True)]
    return stack_pairs(rows, length)


def _draft(
    task: RulerTask,
    counterfactual: str,
    tokenizer: Tokenizer,
    haystack: Haystack,
    rng: np.random.Generator,
) -> _Draft:
    change = {"value": _other_value, "keys": _swapped_keys}[counterfactual]
    needles = max(task.needles, 2) if counterfactual == "keys" else task.needles
    for _ in range(_TRIES):
        source = FactSource(task.value, rng)
        asked = int(rng.integers(needles))
        facts, other_facts, distractor = change(source, needles, asked, rng)
        document = RulerDocument(task, facts, asked, haystack, source, rng)
        try:
            row = _row(tokenizer, document, other_facts, distractor, 1)
        except UnequalTokens as error:
            reason = error
        else:
            return _Draft(document, other_facts, distractor, row)
    raise UserError(
        f"{_TRIES} draws of keys and values gave no pair of equal token count ({reason}); use "
        "a tokenizer that knows words and numbers, or the template of needle symbols"
    )


def _other_value(source: FactSource, needles: int, asked: int, rng) -> tuple:
    """Returns facts, the same with another value in the one asked for, and that value."""
    facts = [source.fact() for _ in range(needles)]
    distractor = source.value_unlike(facts[asked].value)
    changed = {asked: facts[asked]._replace(value=distractor)}
    return facts, _replaced(facts, changed), distractor


def _swapped_keys(source: FactSource, needles: int, asked: int, rng) -> tuple:
    """Returns facts, and the same with the asked key and that of another fact swapped.

    The third result is the value that the asked key has then.
    """
    facts = [source.fact() for _ in range(needles)]
    other = int(rng.choice([i for i in range(needles) if i != asked]))
    distractor = source.value_unlike(facts[asked].value)
    facts[other] = facts[other]._replace(value=distractor)
    changed = {
        asked: facts[asked]._replace(key=facts[other].key),
        other: facts[other]._replace(key=facts[asked].key),
    }
    return facts, _replaced(facts, changed), distractor


def _replaced(facts: list[Fact], changed: dict[int, Fact]) -> tuple[Fact, ...]:
    return tuple(changed.get(i, fact) for i, fact in enumerate(facts))


def _moved(tokenizer: Tokenizer, draft: _Draft) -> int:
    """Counts how many of the answer's tokens stand in the prompt."""
    return len(draft.smallest.prompt) - len(token_ids(tokenizer, draft.document.prompt(1)))


def _grown(tokenizer: Tokenizer, draft: _Draft, units: int) -> PairRow:
    """Returns the draft's pair in the largest haystack, up to `units`, with the same answer."""
    for size in range(units, max(units - _TRIES, 0), -1):
        try:
            row = _row(tokenizer, draft.document, draft.other_facts, draft.distractor, size)
        except UnequalTokens as error:
            reason = error
        else:
            if (row.answer, row.distractor) == (draft.smallest.answer, draft.smallest.distractor):
                return row
            reason = "the answer's tokens depend on the haystack"
    raise UserError(f"no haystack keeps a pair's token counts equal ({reason}); use other text")


def _row(
    tokenizer: Tokenizer,
    document: RulerDocument,
    other_facts: tuple[Fact, ...],
    distractor: str,
    units: int,
) -> PairRow:
    """Returns the pair's tokens.

    Raises:
      UnequalTokens: the texts make no pair, or they differ in another place than the keys or values
        that were changed.
    """
    prompt, corrupt = document.prompt(units), document.prompt(units, other_facts)
    answer = document.facts[document.asked].value
    row = token_row(tokenizer, prompt, corrupt, f" {answer}", f" {distractor}")
    spans = list(_changed_spans(document, other_facts, prompt))
    offsets = tokenizer.encode(prompt, add_special_tokens=False).offsets
    for (start, end), token, other in zip(offsets, row.prompt, row.corrupt, strict=False):
        if token != other and not any(start < last and first < end for first, last in spans):
            raise UnequalTokens(f"{prompt[start:end]!r} has other tokens in the corrupt prompt")
    return row


def _changed_spans(
    document: RulerDocument, other_facts: tuple[Fact, ...], prompt: str
) -> Iterator[tuple[int, int]]:
    """Says where in the prompt the changed keys and values stand."""
    for fact, other in zip(document.facts, other_facts, strict=True):
        if fact != other:
            changed = fact.key if fact.key != other.key else fact.value
            needle = document.needle(fact)
            start = prompt.index(needle) + needle.index(changed)
            yield start, start + len(changed)
