"""Computes the short causal convolution of delta-rule heads, on real tokens only."""

import torch
import torch.nn.functional as F
from torch import nn

from .kernels_hydrahead import causal_conv as fast_causal_conv

TAPS = 4


def causal_conv(x_BTM, tail_BMW, weight_MW, silu: bool, documents_BT=None):
    """Computes sum_w weight[w] x[t + w - (taps - 1)], each channel by itself.

    Args:
      x_BTM: inputs.
      tail_BMW: the taps - 1 inputs before them; None for zeros.
      weight_MW: the last tap belongs to the token itself.
      silu: whether silu follows.
      documents_BT: tokens of other documents count as zero; there is no tail then.
    """
    out_BTM = fast_causal_conv(x_BTM, tail_BMW, weight_MW, silu, documents_BT)
    if out_BTM is not None:
        return out_BTM
    T = x_BTM.shape[1]
    if tail_BMW is None:
        tail_BMW = x_BTM.new_zeros(x_BTM.shape[0], x_BTM.shape[2], TAPS - 1)
    dtype, weight_WM = x_BTM.dtype, weight_MW.float().t()
    x_BTM = torch.cat([tail_BMW.transpose(1, 2).to(dtype), x_BTM], dim=1).float()
    if documents_BT is not None:
        documents_BT = F.pad(documents_BT, (TAPS - 1, 0), value=-1)
    out_BTM = x_BTM[:, TAPS - 1 :] * weight_WM[-1]
    for w in range(TAPS - 1):
        tap_BTM = x_BTM[:, w : w + T]
        if documents_BT is not None:
            same_BT = documents_BT[:, w : w + T] == documents_BT[:, TAPS - 1 :]
            tap_BTM = tap_BTM * same_BT[..., None]
        out_BTM.addcmul_(tap_BTM, weight_WM[w])
    return (F.silu(out_BTM) if silu else out_BTM).to(dtype)


class ShortConvolution(nn.Conv1d):
    """Convolves causally and depthwise over the real tokens of each row, ignoring padding."""

    def __init__(self, channels: int, silu: bool):
        super().__init__(channels, channels, TAPS, groups=channels, bias=False)
        self.silu = silu

    def forward(self, x_BTM, tail_BMW, real_BT=None, documents_BT=None):
        """Returns the output [B, T, M], and the last inputs [B, M, taps - 1]."""
        B, T, M = x_BTM.shape
        weight_MW = self.weight[:, 0]
        if real_BT is None:
            out_BTM = causal_conv(x_BTM, tail_BMW, weight_MW, self.silu, documents_BT)
            last_BMW = x_BTM[:, 1 - TAPS :].transpose(1, 2)
            if T < TAPS - 1:
                zeros = x_BTM.new_zeros(B, M, TAPS - 1) if tail_BMW is None else tail_BMW
                last_BMW = torch.cat([zeros.to(x_BTM.dtype), last_BMW], dim=2)[:, :, 1 - TAPS :]
            return out_BTM, last_BMW.contiguous()
        if tail_BMW is None:
            tail_BMW = x_BTM.new_zeros(B, M, TAPS - 1)
        # Padding first, then the tail, then the real tokens.
        kept_BS = F.pad(real_BT, (TAPS - 1, 0), value=True)
        order_BS = kept_BS.to(torch.uint8).argsort(dim=1, stable=True)
        place_BT = order_BS.argsort(dim=1)[:, TAPS - 1 :]
        x_BTM = torch.cat([tail_BMW.transpose(1, 2).to(x_BTM.dtype), x_BTM], dim=1)
        x_BTM = x_BTM * kept_BS[..., None]
        x_BTM = x_BTM.gather(1, order_BS[..., None].expand_as(x_BTM))
        first_BMW = x_BTM[:, : TAPS - 1].transpose(1, 2)
        out_BTM = causal_conv(x_BTM[:, TAPS - 1 :], first_BMW, weight_MW, self.silu)
        index_BT1 = (place_BT - (TAPS - 1)).clamp(min=0)[..., None]
        out_BTM = out_BTM.gather(1, index_BT1.expand(B, T, M))
        return out_BTM, x_BTM[:, 1 - TAPS :].transpose(1, 2).contiguous()
