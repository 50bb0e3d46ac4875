"""Refuses token ids that a model has no embedding for.

For such an id JAX reads another row of the embedding, or NaN, without an error.
"""

from collections.abc import Mapping

import numpy as np

from hydrahead_jax.errors import UserError


def check_token_ids(ids: np.ndarray, vocab: int, what: str) -> None:
    """Raises UserError where some id is below 0, or `vocab` or more; `what` names the ids."""
    ids = np.asarray(ids)
    if not ids.size:
        return
    if ids.dtype.kind not in "iu":
        raise UserError(f"{what}: token ids must be whole numbers, not {ids.dtype}")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= vocab:
        raise UserError(
            f"{what} has token ids from {least} to {most}, the model knows 0 to {vocab - 1}; "
            "encode it with the model's own tokenizer"
        )


def check_tokenizer(
    tokenizer, vocab: int, what: str = "the tokenizer", declared: Mapping[str, int] | None = None
) -> None:
    """Checks the largest id of a tokenizer, added tokens included; ids may have holes.

    Args:
      tokenizer: of the tokenizers library.
      vocab: rows of the model's embedding.
      what: names the tokenizer, such as its path.
      declared: ids of further tokens, as its file gives them.

    Raises:
      UserError: some id is beyond the embedding.
    """
    tokens = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens |= {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    tokens |= {i: token for token, i in (declared or {}).items()}
    if tokens and (largest := max(tokens)) >= vocab:
        raise UserError(
            f"{what} gives {tokens[largest]!r} the id {largest}, and the model knows 0 to "
            f"{vocab - 1}; use the model's own tokenizer"
        )
