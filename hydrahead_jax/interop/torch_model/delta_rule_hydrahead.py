"""Runs the gated delta rule in float32: token by token, and by chunks for prompts."""

import torch
import torch.nn.functional as F
from transformers.utils.import_utils import is_tracing

from .kernels_hydrahead import delta_rule as fast_delta_rule

CHUNK = 64
GROUP_TOKENS = 2**14  # tokens of all rows and heads that are worked on at once
RESET = -1e4  # a log decay after which nothing is left in float32


def delta_rule(q_BTNH, k_BTNH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP, documents_BT=None):
    """Runs the gated delta rule by the fastest available method.

    Args:
      q_BTNH, k_BTNH, v_BTNP: any float dtype; queries not yet scaled by H**-0.5.
      log_decay_BTN, beta_BTN: float32, zero on padding.
      state_BNHP: float32, before the first token; None for zeros.
      documents_BT: a number for each document of a packed row, or None.

    Returns:
      The output in the dtype of v, and the state after the last token in float32.
    """
    arguments = (q_BTNH, k_BTNH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP, documents_BT)
    if (result := fast_delta_rule(*arguments)) is not None:
        return result
    B, T, N, H = q_BTNH.shape
    if state_BNHP is None:
        state_BNHP = log_decay_BTN.new_zeros(B, N, H, v_BTNP.shape[-1])
    if documents_BT is not None:
        begins_BT = documents_BT.diff(dim=1, prepend=documents_BT[:, :1]) != 0
        log_decay_BTN = log_decay_BTN.masked_fill(begins_BT[..., None], RESET)
    inputs = (q_BTNH.float(), k_BTNH.float(), v_BTNP.float(), log_decay_BTN, beta_BTN)
    if T > 1:
        out_BTNP, state_BNHP = delta_rule_chunked(*inputs, state_BNHP, H**-0.5)
    else:
        out_BNP, state_BNHP = delta_rule_step(*(x[:, 0] for x in inputs), state_BNHP)
        out_BTNP = out_BNP[:, None] * H**-0.5
    return out_BTNP.to(v_BTNP.dtype), state_BNHP


def delta_rule_step(q_BNH, k_BNH, v_BNP, log_decay_BN, beta_BN, state_BNHP):
    """Computes S <- exp(log_decay) S;  S <- S + beta k (v - S^T k)^T;  o = S^T q."""
    state_BNHP = state_BNHP * log_decay_BN.exp()[..., None, None]
    error_BNP = v_BNP - torch.einsum("bnhp,bnh->bnp", state_BNHP, k_BNH)
    write_BNP = beta_BN[..., None] * error_BNP
    state_BNHP = state_BNHP + torch.einsum("bnh,bnp->bnhp", k_BNH, write_BNP)
    return torch.einsum("bnhp,bnh->bnp", state_BNHP, q_BNH), state_BNHP


def delta_rule_chunked(
    q_BTNH, k_BTNH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP, scale: float = 1.0
):
    """Runs the rule over many tokens, some chunks at a time: memory does not grow with T."""
    B, T, N, _ = q_BTNH.shape
    inputs = (q_BTNH, k_BTNH, v_BTNP, log_decay_BTN[..., None], beta_BTN[..., None])
    rows = 1 if is_tracing(q_BTNH) else B  # a graph serves any number of rows
    tokens = CHUNK * max(1, GROUP_TOKENS // (rows * N * CHUNK))
    state_XHP, outputs = state_BNHP.flatten(0, 1), []
    for begin in range(0, T, tokens):
        chunks = (_chunks(x[:, begin : begin + tokens]) for x in inputs)
        out_XZCP, state_XHP = _run_chunks(*chunks, state_XHP, scale)
        out_BNTP = out_XZCP.flatten(1, 2).unflatten(0, (B, N))
        outputs.append(out_BNTP[:, :, : min(tokens, T - begin)].transpose(1, 2))
    out_BTNP = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return out_BTNP, state_XHP.unflatten(0, (B, N))


def _run_chunks(q, k, v, log_decay, beta, state_XHP, scale: float):
    """Runs chunks [X, Z, C, H], X = B * N.

    Within a chunk the recurrence is one triangular system.
    """
    lower_CC = torch.ones(CHUNK, CHUNK, device=q.device).tril()
    # [i, j] = sum of log_decay over j < m <= i, as a sum and not as a difference of two.
    decay = (lower_CC @ (log_decay * lower_CC.tril(-1))).exp() * lower_CC
    from_entry = log_decay.cumsum(-2).exp()
    written_k = beta * k
    written, erased = torch.linalg.solve_triangular(
        (written_k @ k.transpose(-1, -2)) * decay,
        torch.cat([beta * v, from_entry * written_k], dim=-1),
        upper=False,
        unitriangular=True,
    ).split([v.shape[-1], k.shape[-1]], dim=-1)
    scores = (q @ k.transpose(-1, -2)) * decay
    q, k = from_entry * q, (decay[..., -1, :, None] * k).transpose(-1, -2)
    outputs = []
    for z in range(q.shape[1]):
        write_XCP = torch.baddbmm(written[:, z], erased[:, z], state_XHP, alpha=-1)
        out_XCP = torch.bmm(scores[:, z], write_XCP)
        outputs.append(torch.baddbmm(out_XCP, q[:, z], state_XHP, beta=scale, alpha=scale))
        state_XHP = torch.baddbmm(from_entry[:, z, -1:] * state_XHP, k[:, z], write_XCP)
    return torch.stack(outputs, dim=1), state_XHP


def _chunks(x_BTNH):
    """Cuts [B, T, N, H] into [X, Z, C, H].

    The padding that is added at the end neither decays nor writes.
    """
    x_BNTH = x_BTNH.transpose(1, 2)
    x_BNTH = F.pad(x_BNTH, (0, 0, 0, -x_BNTH.shape[2] % CHUNK))
    return x_BNTH.flatten(0, 1).unflatten(1, (-1, CHUNK))
