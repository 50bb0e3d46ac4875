"""The gated delta rule, float32: token by token, and by chunks for whole prompts."""

import torch
import torch.nn.functional as F

from .kernels_hydrahead import delta_rule as fast_delta_rule

CHUNK = 64
RESET = -1e4  # a log decay after which nothing is left in float32


def delta_rule(q_BTNH, k_BTNH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP, documents_BT=None):
    """Runs the gated delta rule, by the fastest way there is.

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
    q, k, v = q_BTNH.float() * H**-0.5, k_BTNH.float(), v_BTNP.float()
    inputs = (q, k, v, log_decay_BTN, beta_BTN)
    if T > 1:
        out_BTNP, state_BNHP = delta_rule_chunked(*inputs, state_BNHP)
    else:
        out_BNP, state_BNHP = delta_rule_step(*(x[:, 0] for x in inputs), state_BNHP)
        out_BTNP = out_BNP[:, None]
    return out_BTNP.to(v_BTNP.dtype), state_BNHP


def delta_rule_step(q_BNH, k_BNH, v_BNP, log_decay_BN, beta_BN, state_BNHP):
    """S <- exp(log_decay) S;  S <- S + beta k (v - S^T k)^T;  o = S^T q."""
    state_BNHP = state_BNHP * log_decay_BN.exp()[..., None, None]
    error_BNP = v_BNP - torch.einsum("bnhp,bnh->bnp", state_BNHP, k_BNH)
    write_BNP = beta_BN[..., None] * error_BNP
    state_BNHP = state_BNHP + torch.einsum("bnh,bnp->bnhp", k_BNH, write_BNP)
    return torch.einsum("bnhp,bnh->bnp", state_BNHP, q_BNH), state_BNHP


def delta_rule_chunked(q_BTNH, k_BTNH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP):
    """The same over many tokens: within a chunk the recurrence is one triangular system."""
    T = q_BTNH.shape[1]
    q, k, v, log_decay, beta = (
        _chunks(x) for x in (q_BTNH, k_BTNH, v_BTNP, log_decay_BTN[..., None], beta_BTN[..., None])
    )
    ones_CC = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device)
    # [i, j] = sum of log_decay over j < m <= i, as a sum and not as a difference of two.
    between = log_decay.expand(*log_decay.shape[:-1], CHUNK).masked_fill(~ones_CC.tril(-1), 0)
    decay = torch.where(ones_CC.tril(), between.cumsum(-2).exp(), 0.0)
    from_entry = log_decay.cumsum(-2).exp()
    to_exit = decay[..., -1, :, None]
    system = (beta * (k @ k.transpose(-1, -2)) * decay).tril(-1)
    right_side = torch.cat([beta * v, beta * from_entry * k], dim=-1)
    written, erased = (_unit_lower_inverse(system) @ right_side).split(
        [v.shape[-1], k.shape[-1]], dim=-1
    )
    scores = (q @ k.transpose(-1, -2)) * decay
    outputs = []
    for z in range(q.shape[0]):
        write = written[z] - erased[z] @ state_BNHP
        outputs.append(from_entry[z] * (q[z] @ state_BNHP) + scores[z] @ write)
        added = (to_exit[z] * k[z]).transpose(-1, -2) @ write
        state_BNHP = from_entry[z, :, :, -1:] * state_BNHP + added
    out_BNTP = torch.cat(outputs, dim=2)
    return out_BNTP.transpose(1, 2)[:, :T], state_BNHP


def _unit_lower_inverse(lower_CC):
    """(I + lower)^-1 for strictly lower triangular matrices, block by block as substitution goes.

    Two neighbouring diagonal blocks of inverses X1, X2 become one: [[X1, 0], [-X2 L X1, X2]].
    """
    index_C = torch.arange(CHUNK, device=lower_CC.device)
    inverse_CC = torch.eye(CHUNK, device=lower_CC.device).expand_as(lower_CC)
    size = 1
    while size < CHUNK:
        block_C = index_C // size
        below = (block_C[:, None] == block_C + 1) & (block_C % 2 == 0)
        between_CC = torch.where(below, lower_CC, 0.0)
        inverse_CC = inverse_CC - inverse_CC @ between_CC @ inverse_CC
        size *= 2
    return inverse_CC


def _chunks(x_BTNH):
    """[B, T, N, H] -> [Z, B, N, C, H]; what is added at the end neither decays nor writes."""
    B, T, N, H = x_BTNH.shape
    x_BTNH = F.pad(x_BTNH, (0, 0, 0, 0, 0, -T % CHUNK))
    return x_BTNH.reshape(B, -1, CHUNK, N, H).permute(1, 0, 3, 2, 4)
