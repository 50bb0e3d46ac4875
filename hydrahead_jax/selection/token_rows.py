"""From the texts of a counterfactual pair to its tokens."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from hydrahead_jax.selection.pairs import PairRow


class UnequalTokens(ValueError):
    """The texts have token counts that make no pair; the message says which."""


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def token_row(
    tokenizer: Tokenizer, prompt: str, corrupt: str, answer: str, distractor: str
) -> PairRow:
    """A pair whose answer is what the answer's text adds to the prompt's tokens.

    Tokens that answer and distractor begin with alike move into both prompts.

    Raises:
      UnequalTokens: prompt and corrupt prompt, or answer and distractor, have different numbers
        of tokens, or are the same, or a prompt's tokens change where an answer follows.
    """
    prompt_ids, corrupt_ids = token_ids(tokenizer, prompt), token_ids(tokenizer, corrupt)
    added = _added(tokenizer, prompt, prompt_ids, answer)
    other = _added(tokenizer, prompt, prompt_ids, distractor)
    if _added(tokenizer, corrupt, corrupt_ids, answer) != added:
        raise UnequalTokens(f"the answer {answer!r} has other tokens after the corrupt prompt")
    if len(prompt_ids) != len(corrupt_ids):
        raise UnequalTokens(
            f"prompt and corrupt prompt have {len(prompt_ids)} and {len(corrupt_ids)} tokens"
        )
    if prompt_ids == corrupt_ids:
        raise UnequalTokens("prompt and corrupt prompt have the same tokens")
    if len(added) != len(other):
        raise UnequalTokens(
            f"answer {answer!r} and distractor {distractor!r} have {len(added)} and {len(other)} "
            "tokens"
        )
    shared = _shared(added, other)
    if shared == len(added):
        raise UnequalTokens(f"answer {answer!r} and distractor {distractor!r} have the same tokens")
    head, added, other = added[:shared], added[shared:], other[shared:]
    return PairRow(prompt_ids + head, corrupt_ids + head, added, other)


def _added(
    tokenizer: Tokenizer, prompt: str, prompt_ids: Sequence[int], answer: str
) -> Sequence[int]:
    whole = token_ids(tokenizer, prompt + answer)
    if whole[: len(prompt_ids)] != prompt_ids:
        raise UnequalTokens(f"the prompt's last tokens change where {answer!r} follows")
    return whole[len(prompt_ids) :]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of leading tokens that are alike."""
    alike = [x == y for x, y in zip(a, b, strict=True)]
    return (*alike, False).index(False)
