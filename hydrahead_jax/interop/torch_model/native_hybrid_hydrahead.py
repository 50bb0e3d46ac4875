"""Defines native hybrid attention: a window of tokens and slots before it, or all tokens."""

import torch
import torch.nn.functional as F
from torch import nn

from .attention_hydrahead import GroupedAttention
from .cache_hydrahead import HydraHeadCacheLayer
from .configuration_hydrahead import HydraHeadConfig
from .mixers_hydrahead import Projections, rotate
from .slots_hydrahead import Window, attend
from .tokens_hydrahead import Tokens, rotary_angles


class NativeHybridAttention(Projections):
    """Computes one softmax over the nearest `window` tokens and the slots (arXiv 2510.07019).

    A layer of window None sees all tokens, and `slots` keys of logit 0 and value 0 if it has sinks.
    """

    def __init__(self, config: HydraHeadConfig, mixer: dict, layer_idx: int):
        N, K = config.num_attention_heads, config.num_key_value_heads
        super().__init__(config, N, K)
        self.layer_idx, self.mixer, self.theta = layer_idx, mixer, config.rope_theta
        if mixer["window"] is None:
            kv_of = [head * K // N for head in range(N)]
            self.null_keys = mixer["slots"] if mixer["sinks"] else 0
            self.attend = GroupedAttention(config, layer_idx, kv_of, self.null_keys)
        else:
            self.g_proj = nn.Linear(config.hidden_size, K * mixer["slots"], bias=False)
        self.o_proj = nn.Linear(N * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTD, tokens: Tokens, past):
        q_BTNH, k_BTKH, v_BTKH = self.project(x_BTD)
        q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        if self.mixer["window"] is None:
            out_BTNH = self._everything(q_BTNH, k_BTKH, v_BTKH, tokens, past)
        else:
            gate_BTM = F.logsigmoid(self.g_proj(x_BTD).float()) / self.mixer["gate_normaliser"]
            log_forget_BTKM = gate_BTM.unflatten(-1, (-1, self.mixer["slots"]))
            cache = None if past is None else past.layers[self.layer_idx]
            with torch.autocast(x_BTD.device.type, enabled=False):
                arrays = (q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM)
                out_BTNH = self._window_and_slots(arrays, tokens, cache).to(x_BTD.dtype)
        return self.o_proj(out_BTNH.flatten(2))

    def _everything(self, q_BTNH, k_BTKH, v_BTKH, tokens: Tokens, past):
        """Computes softmax attention; a cache begins with the null keys."""
        q_BTNH, k_BTKH = rotate(q_BTNH, tokens), rotate(k_BTKH, tokens)
        q_BNTH, k_BKSH, v_BKSH = (x.transpose(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
        if self.null_keys and (past is None or past.layers[self.layer_idx].keys is None):
            k_BKSH, v_BKSH = (F.pad(x, (0, 0, self.null_keys, 0)) for x in (k_BKSH, v_BKSH))
        if past is not None:
            k_BKSH, v_BKSH = past.update(k_BKSH, v_BKSH, self.layer_idx)
        return self.attend(q_BNTH, k_BKSH, v_BKSH, tokens)

    def _window_and_slots(self, arrays, tokens: Tokens, cache: HydraHeadCacheLayer | None):
        """Returns heads [B, T, N, H]; the cache then has the last tokens, without RoPE, and slots.

        Padding is moved in front of the waiting tokens, so that it takes no place in the window.
        """
        q_BTNH, *new = arrays
        B, T, _, H = q_BTNH.shape
        W = self.mixer["window"]
        waiting, slots, positions_BX = self._state(arrays, cache)
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
            q_BSNH = F.pad(q_BTNH, (0, 0, 0, 0, W, 0))
            q_BTNH = _taken(q_BSNH, order_BS)[:, W:]
            k_BSKH, v_BSKH, log_forget_BSKM, positions_BS = (
                _taken(x, order_BS) for x in (k_BSKH, v_BSKH, log_forget_BSKM, positions_BS)
            )
        seen_BS = positions_BS.clamp(min=0)
        angles = rotary_angles(seen_BS, self.theta, H)
        turned_k = rotate(k_BSKH, Tokens(seen_BS, *angles))
        turned_q = rotate(q_BTNH, Tokens(seen_BS[:, W:], *(x[:, :, W:] for x in angles)))
        documents_BS = tokens.documents_BT
        if documents_BS is not None:
            documents_BS = F.pad(documents_BS.expand(B, T), (W, 0), value=-1)
        window = Window(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            log_forget_BSKM,
            (turned_q, turned_k),
            positions_BS >= 0,
            documents_BS,
        )
        out_BTNH, slots = attend(window, slots, held_B, self.mixer["sinks"])
        if cache is not None:
            for index, x in enumerate((k_BSKH, v_BSKH, log_forget_BSKM)):
                cache.update_conv_state(x[:, T:].clone(), index)
            last_B1 = torch.maximum(positions_BX[:, :1], positions_BS[:, T - 1 : T])
            positions_BX = torch.cat([last_B1, positions_BS[:, T:]], dim=1)
            for index, x in enumerate((*slots, positions_BX)):
                cache.update_recurrent_state(x, index)
        return out_BTNH if places is None else _taken(out_BTNH, places)

    def _state(self, arrays, cache: HydraHeadCacheLayer | None):
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
        W, M = self.mixer["window"], self.mixer["slots"]
        waiting = [x.new_zeros(B, W, *x.shape[2:]) for x in new]
        slots = [new[0].new_zeros(B, K, M, H, dtype=torch.float32) for _ in range(2)]
        return waiting, slots, torch.full((B, W + 1), -1, device=q_BTNH.device)


def _taken(x_BS, order_BT):
    """Takes tokens [B, T] along the second dimension."""
    index = order_BT.reshape(*order_BT.shape, *[1] * (x_BS.dim() - 2))
    return x_BS.gather(1, index.expand(*order_BT.shape, *x_BS.shape[2:]))
