"""Stores counterfactual pairs as arrays, on which the effects of heads are measured."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

NO_TOKEN = -1


class ProbePairs(NamedTuple):
    """Stores B pairs x, x' of one sub-probe, int32, row by row of equal token count.

    Both end with the answer of x, so that one position of x and of x' predicts the same answer
    token. J is the longest answer; a shorter one is followed by padding.

    Attributes:
      tokens_BT: x: padding, prompt, answer, padding.
      corrupt_BT: x', padded alike.
      segment_ids_BT: 1 on tokens, 0 on padding.
      answer_BJ: answer token j stands at T - J + j and is predicted at T - J - 1 + j; -1 after
        the last one.
      distractor_BJ: what x' answers, as many tokens as the answer; the first token differs.
    """

    tokens_BT: Int[np.ndarray, "B T"]
    corrupt_BT: Int[np.ndarray, "B T"]
    segment_ids_BT: Int[np.ndarray, "B T"]
    answer_BJ: Int[np.ndarray, "B J"]
    distractor_BJ: Int[np.ndarray, "B J"]


class PairRow(NamedTuple):
    """Lists the token ids of one pair.

    Prompt and corrupt prompt are equally long, answer and distractor too, and these differ in their
    first token.
    """

    prompt: Sequence[int]
    corrupt: Sequence[int]
    answer: Sequence[int]
    distractor: Sequence[int]


def stack_pairs(rows: Sequence[PairRow], length: int | None = None) -> ProbePairs:
    """Stacks rows to arrays with T = `length`, or as short as the rows allow if None."""
    J = max(len(row.answer) for row in rows)
    length = length or J + max(len(row.prompt) for row in rows)
    tokens_BT, corrupt_BT, segment_ids_BT = np.zeros((3, len(rows), length), np.int32)
    answer_BJ, distractor_BJ = np.full((2, len(rows), J), NO_TOKEN, np.int32)
    for b, row in enumerate(rows):
        span = slice(length - J - len(row.prompt), length - J + len(row.answer))
        tokens_BT[b, span] = [*row.prompt, *row.answer]
        corrupt_BT[b, span] = [*row.corrupt, *row.answer]
        segment_ids_BT[b, span] = 1
        answer_BJ[b, : len(row.answer)] = row.answer
        distractor_BJ[b, : len(row.answer)] = row.distractor
    return ProbePairs(tokens_BT, corrupt_BT, segment_ids_BT, answer_BJ, distractor_BJ)


def pair_rows(pairs: ProbePairs) -> list[PairRow]:
    """Inverts `stack_pairs`."""
    rows = []
    for tokens_T, corrupt_T, segment_ids_T, answer_J, distractor_J in zip(*pairs, strict=True):
        answer_J, distractor_J = (x[x != NO_TOKEN] for x in (answer_J, distractor_J))
        prompt = segment_ids_T == 1
        prompt[len(prompt) - pairs.answer_BJ.shape[1] :] = False
        spans = (tokens_T[prompt], corrupt_T[prompt], answer_J, distractor_J)
        rows.append(PairRow(*(span.tolist() for span in spans)))
    return rows
