"""Says what every layer knows of the tokens of one call: where they are, and what they see.

Dimension letters at the end of names, in all files of this model:
  B batch   T query time   S key time   D embed   N query heads   K key/value heads
  H head dim   P value dim of the delta rule   M channels, or slots   C tokens of a chunk
"""

from typing import NamedTuple

import torch
from transformers.utils.import_utils import is_tracing


class Tokens(NamedTuple):
    """Says where the tokens of one call are and what they see; made once for all layers.

    Attributes:
      positions_BT: counted from the first real token of the document; B may be 1.
      cos_B1TH, sin_B1TH: rotary angles; H is half a head.
      real_BT: False on padding; None without padding.
      real_BS: the same for earlier tokens and these.
      documents_BT: a number for each document of a packed row; None where rows are documents.
      packed: keywords of flash attention for documents.
      mask: for attention implementations of the library that make their own; None otherwise.
    """

    positions_BT: torch.Tensor
    cos_B1TH: torch.Tensor
    sin_B1TH: torch.Tensor
    real_BT: torch.Tensor | None = None
    real_BS: torch.Tensor | None = None
    documents_BT: torch.Tensor | None = None
    packed: dict | None = None
    mask: torch.Tensor | None = None


def real_tokens(attention_mask, past_real_BS, past: int, B: int, T: int, device):
    """Returns (real_BT, real_BS), both None without padding.

    Raises:
      ValueError: the mask has a wrong shape, or hides other tokens of the past than earlier calls.
    """
    if attention_mask is None and past_real_BS is None:
        return None, None
    ones = lambda length: torch.ones(B, length, dtype=torch.bool, device=device)
    past_BS = ones(past) if past_real_BS is None else past_real_BS.to(device)
    if attention_mask is None:
        real_BT = ones(T)
    else:
        shape = tuple(attention_mask.shape)
        if attention_mask.dim() != 2 or shape[0] != B or shape[1] not in (T, past + T):
            raise ValueError(
                f"attention_mask has shape {shape}; it must be ({B}, {T}) for the new tokens, or "
                f"({B}, {past + T}) with the {past} earlier ones as well"
            )
        given = attention_mask.to(device).bool()
        real_BT = given[:, -T:]
        if shape[1] > T and not is_tracing(given) and given.device.type == "cpu":
            if not torch.equal(given[:, :-T], past_BS):
                raise ValueError(
                    "attention_mask hides other earlier tokens than the calls that read them; a "
                    "recurrent state cannot forget, so start again with a new cache"
                )
    return real_BT, torch.cat([past_BS, real_BT], dim=1)


def default_positions(real_BS, past: int, T: int, device):
    """Counts positions over real tokens; [1, T] without padding."""
    if real_BS is None:
        return torch.arange(past, past + T, device=device)[None]
    return (real_BS.cumsum(1) - 1)[:, -T:].clamp(min=0)


def rotary_angles(positions_BT, theta: float, head_dim: int):
    """Returns cos and sin [B, 1, T, H / 2], float32."""
    exponent = torch.arange(0, head_dim, 2, device=positions_BT.device).float()
    frequency_H = theta ** (-exponent / head_dim)
    angle_B1TH = positions_BT[:, None, :, None].float() * frequency_H
    return angle_B1TH.cos(), angle_B1TH.sin()


def rotate(x_BTNH, tokens: Tokens):
    """Applies rotary position embedding, half-split as in Qwen3."""
    left, right = x_BTNH.float().chunk(2, dim=-1)
    cos, sin = tokens.cos_B1TH.transpose(1, 2), tokens.sin_B1TH.transpose(1, 2)
    halves = ((left * cos).addcmul_(right, sin, value=-1), (right * cos).addcmul_(left, sin))
    return torch.cat(halves, dim=-1).to(x_BTNH.dtype)
