"""Names the families of needle documents."""

from typing import Literal

from tokenizers import Tokenizer

from hydrahead_jax.evals.niah import has_needle_symbols

Family = Literal["symbols", "ruler"]
Template = Literal["auto", "symbols", "ruler"]


def family(template: Template, tokenizer: Tokenizer) -> Family:
    """Says what "auto" means: symbols where the tokenizer has them, else RULER's sentences."""
    if template != "auto":
        return template
    return "symbols" if has_needle_symbols(tokenizer) else "ruler"
