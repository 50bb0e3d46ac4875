"""Computes one softmax over a window of tokens and the slots before it, in float32 by chunks.

Source: arXiv 2510.07019. S counts the waiting tokens and the new ones, W the window, M the slots,
G the query heads of a key/value head, C the tokens of a chunk.
"""

from typing import NamedTuple

import torch

CHUNK = 32
RESET = -1e4  # a log decay after which nothing is left in float32


class Window(NamedTuple):
    """Holds W waiting positions, then those of the new tokens; positions without a token first.

    Attributes:
      q_BTNH: queries of the new tokens.
      k_BSKH, v_BSKH: keys and values.
      log_forget_BSKM: log of the forget gates, float32.
      turned: (q, k) with rotary embedding.
      real_BS: False where there is no token.
      documents_BS: a number for each document of a packed row; None where rows are documents.
    """

    q_BTNH: torch.Tensor
    k_BSKH: torch.Tensor
    v_BSKH: torch.Tensor
    log_forget_BSKM: torch.Tensor
    turned: tuple[torch.Tensor, torch.Tensor]
    real_BS: torch.Tensor
    documents_BS: torch.Tensor | None


def attend(window: Window, slots, held_B, sinks: bool):
    """Returns the output [B, T, N, H] in float32, and the slots after the last token.

    A step writes the token that has just left the window to the slots, then reads.

    Args:
      slots: keys and values of the slots [B, K, M, H], float32.
      held_B: whether a token was written to them.
      sinks: whether slots count before a token was written to them.
    """
    T, N = window.q_BTNH.shape[1:3]
    K = window.k_BSKH.shape[2]
    W = window.k_BSKH.shape[1] - T
    written_BT, starts_BT = _writes(window, T, W)
    held_BT = torch.ones_like(written_BT) if sinks else _held(written_BT, starts_BT, held_B)
    log_decay_BTKM = window.log_forget_BSKM[:, :T].masked_fill(~written_BT[..., None, None], 0)
    share_BTKM = -torch.expm1(log_decay_BTKM)
    log_decay_BTKM = log_decay_BTKM.masked_fill(starts_BT[..., None, None], RESET)
    grouped = lambda x_BTNH: x_BTNH.float().unflatten(2, (K, N // K)).permute(0, 2, 3, 1, 4)
    heads = lambda x_BSKH: x_BSKH.float().transpose(1, 2)
    q_BKGTH, turned_BKGTH = grouped(window.q_BTNH), grouped(window.turned[0])
    k_BKSH, v_BKSH, turned_BKSH = map(heads, (window.k_BSKH, window.v_BSKH, window.turned[1]))
    outputs = []
    for begin in range(0, T, CHUNK):
        end = min(begin + CHUNK, T)
        own = slice(begin, end)
        decay = _decays(heads(log_decay_BTKM[:, own]), heads(share_BTKM[:, own]))
        near = slice(begin + 1, end + W)
        out_BKGCH, slots = _chunk(
            q_BKGTH[..., own, :],
            turned_BKGTH[..., own, :],
            (k_BKSH[:, :, own], v_BKSH[:, :, own]),
            (turned_BKSH[:, :, near], v_BKSH[:, :, near]),
            held_BT[:, own],
            _seen(window, own, near, W),
            slots,
            decay,
        )
        outputs.append(out_BKGCH.permute(0, 3, 1, 2, 4).flatten(2, 3))
    return torch.cat(outputs, dim=1), slots


def _chunk(q_BKGCH, turned_BKGCH, written, near, held_BC, seen_BCS, slots, decay):
    """Runs the tokens of a chunk; `written` and `near` are keys and values."""
    (k_BKCH, v_BKCH), (near_k_BKSH, near_v_BKSH) = written, near
    k_slots_BKMH, v_slots_BKMH = slots
    from_entry_BKCM, writes_BKCCM = decay
    M = k_slots_BKMH.shape[2]
    scores = torch.einsum("bkgth,bkih->bkgti", q_BKGCH, k_BKCH)
    logits = torch.einsum("bkgth,bkmh->bkgtm", q_BKGCH, k_slots_BKMH) * from_entry_BKCM[:, :, None]
    logits = logits + torch.einsum("bkgti,bktim->bkgtm", scores, writes_BKCCM)
    near_logits = torch.einsum("bkgth,bksh->bkgts", turned_BKGCH, near_k_BKSH)
    least = torch.finfo(torch.float32).min
    logits = logits.masked_fill(~held_BC[:, None, None, :, None], least)
    near_logits = near_logits.masked_fill(~seen_BCS[:, None, None], least)
    shares = (torch.cat([logits, near_logits], -1) * q_BKGCH.shape[-1] ** -0.5).softmax(-1)
    p, near_p = shares[..., :M], shares[..., M:]
    out = torch.einsum("bkgtm,bkmh->bkgth", p * from_entry_BKCM[:, :, None], v_slots_BKMH)
    of_tokens = torch.einsum("bkgtm,bktim->bkgti", p, writes_BKCCM)
    out = out + of_tokens @ v_BKCH[:, :, None] + near_p @ near_v_BKSH[:, :, None]
    through, to_exit = from_entry_BKCM[:, :, -1, :, None], writes_BKCCM[:, :, -1].transpose(2, 3)
    after = [
        through * old + to_exit @ new for old, new in zip(slots, (k_BKCH, v_BKCH), strict=True)
    ]
    return out, after


def _decays(log_decay_BKCM, share_BKCM):
    """Returns what is left of the slots at each token, and the share of token i at token t."""
    C = log_decay_BKCM.shape[2]
    lower_CC = torch.ones(C, C, device=log_decay_BKCM.device).tril()
    # [t, i] = sum of log_decay over i < j <= t, as a sum and not as a difference of two.
    sums_BKCCM = (log_decay_BKCM[:, :, :, None] * lower_CC.tril(-1)[..., None]).cumsum(2)
    writes = sums_BKCCM.exp() * lower_CC[..., None] * share_BKCM[:, :, None]
    return log_decay_BKCM.cumsum(2).exp(), writes


def _writes(window: Window, T: int, W: int):
    """Says at which steps a token is written, and where a document starts."""
    written_BT = window.real_BS[:, :T].clone()
    if window.documents_BS is None:
        return written_BT, torch.zeros_like(written_BT)
    new_BT = window.documents_BS[:, W:]
    starts_BT = new_BT.diff(dim=1, prepend=new_BT[:, :1]) != 0
    return written_BT & (window.documents_BS[:, :T] == new_BT), starts_BT


def _held(written_BT, starts_BT, held_B):
    """Says at which steps the slots hold a token of the document."""
    index_T = torch.arange(written_BT.shape[1], device=written_BT.device)
    write_BT = torch.where(written_BT, index_T, torch.where(held_B, -1, -2)[:, None])
    start_BT = torch.where(starts_BT, index_T, -1)
    return write_BT.cummax(dim=1).values >= start_BT.cummax(dim=1).values


def _seen(window: Window, own: slice, near: slice, W: int):
    """Says which near positions each query sees [B, C, near]; a padding token sees itself."""
    index_S = torch.arange(near.start, near.stop, device=window.real_BS.device)
    here_C1 = torch.arange(own.start + W, own.stop + W, device=index_S.device)[:, None]
    inside = (index_S <= here_C1) & (index_S > here_C1 - W)
    seen = inside & (window.real_BS[:, None, near] | (index_S == here_C1))
    if window.documents_BS is not None:
        mine_BC1 = window.documents_BS[:, own.start + W : own.stop + W, None]
        seen = seen & (window.documents_BS[:, None, near] == mine_BC1)
    return seen
