"""Puts the tokens of a call behind those that a cache holds, and runs windows and slots on them."""

import torch
import torch.nn.functional as F

from .attention_hydrahead import padded_groups, take
from .cache_hydrahead import HydraHeadCacheLayer
from .slots_hydrahead import Window, attend
from .tokens_hydrahead import Tokens, rotary_angles, rotate


def window_and_slots(
    inputs,
    tokens: Tokens,
    cache: HydraHeadCacheLayer | None,
    settings: dict,
    theta: float,
    kv_of: list[int] | None = None,
):
    """Returns heads [B, T, N, H]; the cache then has the last tokens, without RoPE, and slots.

    Args:
      inputs: queries, keys and values without RoPE, and what the gates of the slots are made of.
      tokens: of this call.
      cache: before this call, or None.
      settings: window, slots, sinks and gate_normaliser.
      theta: base of the rotary angles.
      kv_of: for each query head the key/value head that it reads; equal groups in turn if None.
    """
    q_BTNH, k_BTKH, v_BTKH, gate_BTM = inputs
    log_forget_BTM = F.logsigmoid(gate_BTM.float()) / settings["gate_normaliser"]
    log_forget_BTKM = log_forget_BTM.unflatten(-1, (-1, settings["slots"]))
    with torch.autocast(q_BTNH.device.type, enabled=False):
        if kv_of is None:
            arrays = (q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM)
            return _run(arrays, tokens, cache, settings, theta).to(q_BTNH.dtype)
        heads, places = padded_groups(kv_of)
        arrays = (take(q_BTNH, heads, 2), k_BTKH, v_BTKH, log_forget_BTKM)
        return take(_run(arrays, tokens, cache, settings, theta).to(q_BTNH.dtype), places, 2)


def _run(arrays, tokens: Tokens, cache, settings: dict, theta: float):
    """Runs tokens behind the waiting ones.

    Padding is moved in front of the waiting tokens, so that it takes no place in the window.
    """
    q_BTNH, *new = arrays
    B, T, _, H = q_BTNH.shape
    W = settings["window"]
    waiting, slots, positions_BX = _state(arrays, cache, settings)
    k_BSKH, v_BSKH, log_forget_BSKM = (
        torch.cat([x.to(y.dtype), y], dim=1) for x, y in zip(waiting, new, strict=True)
    )
    new_BT = tokens.positions_BT.expand(B, T)
    if tokens.real_BT is not None:
        new_BT = new_BT.masked_fill(~tokens.real_BT, -1)
    held_B, positions_BS = positions_BX[:, 0] >= 0, torch.cat([positions_BX[:, 1:], new_BT], 1)
    places = None
    if tokens.real_BT is not None:
        order_BS = (positions_BS >= 0).to(torch.uint8).argsort(dim=1, stable=True)
        places = (order_BS.argsort(dim=1)[:, W:] - W).clamp(min=0)
        q_BTNH = _taken(F.pad(q_BTNH, (0, 0, 0, 0, W, 0)), order_BS)[:, W:]
        k_BSKH, v_BSKH, log_forget_BSKM, positions_BS = (
            _taken(x, order_BS) for x in (k_BSKH, v_BSKH, log_forget_BSKM, positions_BS)
        )
    seen_BS = positions_BS.clamp(min=0)
    angles = rotary_angles(seen_BS, theta, H)
    turned_k = rotate(k_BSKH, Tokens(seen_BS, *angles))
    turned_q = rotate(q_BTNH, Tokens(seen_BS[:, W:], *(x[:, :, W:] for x in angles)))
    documents_BS = tokens.documents_BT
    if documents_BS is not None:
        documents_BS = F.pad(documents_BS.expand(B, T), (W, 0), value=-1)
    keys = (k_BSKH, v_BSKH, log_forget_BSKM)
    window = Window(q_BTNH, *keys, (turned_q, turned_k), positions_BS >= 0, documents_BS)
    out_BTNH, slots = attend(window, slots, held_B, settings["sinks"])
    if cache is not None:
        for index, x in enumerate(keys):
            cache.update_conv_state(x[:, T:].clone(), index)
        last_B1 = torch.maximum(positions_BX[:, :1], positions_BS[:, T - 1 : T])
        positions_BX = torch.cat([last_B1, positions_BS[:, T:]], dim=1)
        for index, x in enumerate((*slots, positions_BX)):
            cache.update_recurrent_state(x, index)
    return out_BTNH if places is None else _taken(out_BTNH, places)


def _state(arrays, cache: HydraHeadCacheLayer | None, settings: dict):
    """Returns W waiting keys, values and gates, the slots, and positions, -1 where none is.

    The positions have one more in front: of the token that was written last.
    """
    q_BTNH, *new = arrays
    if cache is not None and cache.recurrent_states[0] is not None:
        device = q_BTNH.device
        waiting = [cache.conv_state(index, device) for index in range(3)]
        *slots, positions_BX = (cache.recurrent_state(device, index) for index in range(3))
        return waiting, slots, positions_BX
    B, _, K, H = new[0].shape
    W, M = settings["window"], settings["slots"]
    waiting = [x.new_zeros(B, W, *x.shape[2:]) for x in new]
    slots = [new[0].new_zeros(B, K, M, H, dtype=torch.float32) for _ in range(2)]
    return waiting, slots, torch.full((B, W + 1), -1, device=q_BTNH.device)


def _taken(x_BS, order_BT):
    """Takes tokens [B, T] along the second dimension."""
    index = order_BT.reshape(*order_BT.shape, *[1] * (x_BS.dim() - 2))
    return x_BS.gather(1, index.expand(*order_BT.shape, *x_BS.shape[2:]))
