"""Finds how much haystack a needle document of a given token length takes."""

import itertools
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.ruler import RulerDocument

_SAMPLE = 32
_AMPLE = 1.2
_HALVE = 4


def fitting_units(
    documents: Sequence[RulerDocument],
    tokenizer: Tokenizer,
    *,
    length: int,
    after_prompt: Sequence[int],
) -> list[int]:
    """Returns for each document the number of units that fills `length` tokens.

    It is the number whose prompt comes closest without leaving fewer than `after_prompt` tokens.

    Raises:
      UserError: one unit is too many already; says the smallest length that works.
    """
    size = lambda document, units: len(
        tokenizer.encode(document.prompt(units), add_special_tokens=False).ids
    )
    smallest = max(
        size(document, 1) + left for document, left in zip(documents, after_prompt, strict=True)
    )
    if smallest > length:
        raise UserError(
            f"{length} tokens are too few for needle documents in the words of RULER; use at "
            f"least {smallest}"
        )
    return [
        _most_units(lambda units, document=document: size(document, units), length - left)
        for document, left in zip(documents, after_prompt, strict=True)
    ]


def _most_units(size: Callable[[int], int], limit: int) -> int:
    """Finds a number of units that fits `limit` while one more unit does not.

    It is at most `limit`. One unit fits. Sizes grow by about as much for every unit.
    """
    low, low_size = 1, size(1)
    high = _SAMPLE
    while (high_size := size(high)) <= limit:
        if high >= limit:
            return limit
        per_unit = max((high_size - low_size) / (high - low), 1 / limit)
        guess = high + int(_AMPLE * (limit - high_size) / per_unit)
        low, low_size, high = high, high_size, min(max(guess, high + 1), 8 * high, limit + 1)
    for step in itertools.count():
        if high - low <= 1:
            return low
        share = (limit - low_size) / (high_size - low_size) if step % _HALVE else 0.5
        middle = low + min(max(round(share * (high - low)), 1), high - low - 1)
        middle_size = size(middle)
        if middle_size <= limit:
            low, low_size = middle, middle_size
        else:
            high, high_size = middle, middle_size
