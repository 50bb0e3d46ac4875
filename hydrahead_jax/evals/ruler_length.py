"""How much haystack a needle document of a given token length takes."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.ruler import RulerDocument


def fitting_units(
    documents: Sequence[RulerDocument],
    tokenizer: Tokenizer,
    *,
    length: int,
    after_prompt: Sequence[int],
) -> list[int]:
    """The units of each document with which its prompt fills `length` tokens, as far as whole
    units do, and leaves `after_prompt` of them.

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
            f"{length} tokens are too few for needle documents in the words of RULER; the smallest "
            f"length that works is {smallest}"
        )
    return [
        _most_units(lambda units, document=document: size(document, units), length - left)
        for document, left in zip(documents, after_prompt, strict=True)
    ]


def _most_units(size: Callable[[int], int], limit: int) -> int:
    """The largest number, up to `limit`, whose size is at most `limit`; that of 1 is."""
    low, high = 1, 2
    while high < limit and size(high) <= limit:
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low
