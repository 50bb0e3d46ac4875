"""Converts the texts of a counterfactual pair to tokens."""

from reprlib import repr as short

from tokenizers import Tokenizer

from hydrahead_jax.selection.probes.pairs import PairRow


class UnequalTokens(ValueError):
    """Says that the texts have token counts that make no pair; the message says which."""


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the tokens of a text, none added at its ends."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def token_row(
    tokenizer: Tokenizer, prompt: str, corrupt: str, answer: str, distractor: str
) -> PairRow:
    """Makes a pair whose answer is what the answer's text adds to the prompt's tokens.

    Tokens that answer and distractor begin with alike move into both prompts.

    Raises:
      UnequalTokens: prompt and corrupt prompt have different numbers of tokens, or are the same,
        or the answer's tokens depend on which it follows; or as `answer_tokens`.
    """
    prompt_ids, corrupt_ids = token_ids(tokenizer, prompt), token_ids(tokenizer, corrupt)
    answer_ids, distractor_ids = answer_tokens(tokenizer, prompt, prompt_ids, answer, distractor)
    if len(prompt_ids) != len(corrupt_ids):
        raise UnequalTokens(
            f"prompt and corrupt prompt have {len(prompt_ids)} and {len(corrupt_ids)} tokens"
        )
    if prompt_ids == corrupt_ids:
        raise UnequalTokens("prompt and corrupt prompt have the same tokens")
    if _added(tokenizer, corrupt, corrupt_ids, answer) != answer_ids:
        raise UnequalTokens(f"the answer {answer!r} has other tokens after the corrupt prompt")
    alike = [a == b for a, b in zip(answer_ids, distractor_ids, strict=True)].index(False)
    head = answer_ids[:alike]
    return PairRow(
        prompt_ids + head, corrupt_ids + head, answer_ids[alike:], distractor_ids[alike:]
    )


def answer_tokens(
    tokenizer: Tokenizer, prompt: str, prompt_ids: list[int], answer: str, distractor: str
) -> tuple[list[int], list[int]]:
    """Returns what answer and distractor add to the prompt's tokens, `prompt_ids`.

    Raises:
      UnequalTokens: they add different numbers of tokens, or the same tokens, or change the
        prompt's last ones.
    """
    ids = [_added(tokenizer, prompt, prompt_ids, text) for text in (answer, distractor)]
    if len(ids[0]) != len(ids[1]):
        raise UnequalTokens(
            f"answer {short(answer)} and distractor {short(distractor)} have {len(ids[0])} and "
            f"{len(ids[1])} tokens"
        )
    if ids[0] == ids[1]:
        raise UnequalTokens(
            f"answer {short(answer)} and distractor {short(distractor)} have the same tokens"
        )
    return ids[0], ids[1]


def _added(tokenizer: Tokenizer, prompt: str, prompt_ids: list[int], ending: str) -> list[int]:
    whole = token_ids(tokenizer, prompt + ending)
    if whole[: len(prompt_ids)] != prompt_ids:
        raise UnequalTokens(
            f"the prompt's last tokens change where {short(ending)} follows; a space between them "
            "belongs to the latter"
        )
    return whole[len(prompt_ids) :]
