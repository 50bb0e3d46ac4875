"""Handles rows that hold several documents, as padding-free trainers make them."""

import torch
from transformers.utils.import_utils import is_tracing


def find_documents(position_ids, cu_seq_lens, seq_idx, attention_mask, past: int, B: int, T: int):
    """Numbers the documents [B, T], rising along a row; None where rows are documents.

    A document begins where `cu_seq_lens` or `seq_idx` says, and without a mask or earlier tokens
    wherever `position_ids` do not go on by one: transformers' rule.

    Raises:
      ValueError: boundaries with earlier tokens, or positions that start again under a mask.
    """
    marks_BT = None
    if cu_seq_lens is not None:
        if B != 1 or cu_seq_lens.dim() != 1:
            raise ValueError(f"cu_seq_lens go with one row of tokens; this batch has {B}")
        index_T = torch.arange(T, device=cu_seq_lens.device)
        marks_BT = torch.bucketize(index_T, cu_seq_lens[1:].contiguous(), right=True)[None]
    if seq_idx is not None:
        if tuple(seq_idx.shape) not in ((1, T), (B, T)):
            raise ValueError(f"seq_idx has shape {tuple(seq_idx.shape)}; it must be ({B}, {T})")
        begins_BT = (seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0).long().cumsum(1).expand(B, T)
        marks_BT = begins_BT if marks_BT is None else marks_BT.to(begins_BT.device) + begins_BT
    if marks_BT is not None and past:
        raise ValueError("documents in one row cannot follow a cache; run each with its own")
    if marks_BT is None and position_ids is not None and T > 1:
        marks_BT = _by_positions(position_ids.expand(B, T), attention_mask, past)
    return marks_BT


def _by_positions(positions_BT, attention_mask, past: int):
    tracing = is_tracing(positions_BT)
    if attention_mask is None and past == 0:
        first_B1 = positions_BT[:, :1] - 1
        marks_BT = (positions_BT.diff(dim=1, prepend=first_B1) != 1).long().cumsum(1)
        return marks_BT if tracing or bool(marks_BT[:, -1].any()) else None
    if tracing:
        return None
    real_BT = torch.ones_like(positions_BT, dtype=torch.bool)
    if attention_mask is not None:
        real_BT = attention_mask[:, -positions_BT.shape[1] :].to(positions_BT.device).bool()
    highest_BT = positions_BT.masked_fill(~real_BT, -1).cummax(dim=1).values
    if bool((real_BT[:, 1:] & (positions_BT[:, 1:] <= highest_BT[:, :-1])).any()):
        raise ValueError(
            "position_ids start again within a row; documents in one row are kept apart only "
            "without attention_mask and without a cache"
        )
    return None


def positions_in_documents(documents_BT):
    """Counts positions from the first token of each document."""
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = documents_BT.diff(dim=1, prepend=documents_BT[:, :1] - 1) != 0
    return index_T - (index_T * begins_BT).cummax(dim=1).values
