"""Computes softmax attention of query heads that share key/value heads, with any map."""

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_tracing

from .tokens_hydrahead import Tokens

MASK_ELEMENTS = 2**22  # most elements of the mask of one block of queries


def take(x, indices: list[int], dim: int):
    """Selects indices by a list, without an index on the device; returns a view where it can."""
    return merge([x], indices, dim)


def merge(parts: list, indices: list[int], dim: int):
    """Takes indices from the concatenated parts, with one copy."""
    sources = [(part, i) for part, x in enumerate(parts) for i in range(x.shape[dim])]
    runs = []
    for part, i in (sources[index] for index in indices):
        if runs and runs[-1][0] == part and runs[-1][2] == i:
            runs[-1][2] += 1
        else:
            runs.append([part, i, i + 1])
    pieces = [parts[part].narrow(dim, start, end - start) for part, start, end in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)


def padded_groups(kv_of: list[int]) -> tuple[list[int], list[int]]:
    """Returns query heads in equal groups, one for each key/value head, and where each head is.

    Where fewer heads read a key/value head than another, one of them comes several times.
    """
    readers = [[n for n, kv in enumerate(kv_of) if kv == k] for k in range(max(kv_of) + 1)]
    group = max(len(heads) for heads in readers)
    padded = [heads + heads[:1] * (group - len(heads)) for heads in readers]
    heads = [head for group in padded for head in group]
    return heads, [heads.index(head) for head in range(len(kv_of))]


def eager_attention(module, query, key, value, mask, scaling, dropout=0.0, **kwargs):
    """Computes softmax attention step by step; `mask` is True where a query sees a key."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class _Group:
    """Gives the library's attention functions what they read of a module."""

    is_causal = True
    training = False

    def __init__(self, config, layer_idx: int, queries: int):
        self.config, self.layer_idx, self.num_key_value_groups = config, layer_idx, queries


class GroupedAttention:
    """Computes softmax(q k^T / sqrt(H)) v, where head n of the queries reads head kv_of[n].

    Each key/value head has the same number of query slots; where fewer heads read it, one of them
    fills several slots. So keys and values are never copied to query heads when decoding. Every
    query sees the first `null_keys` keys, which needs attention "sdpa" or "eager".
    """

    def __init__(self, config, layer_idx: int, kv_of: list[int], null_keys: int = 0):
        self.config, self.kv_of, self.null_keys = config, kv_of, null_keys
        self.slots, self.places = padded_groups(kv_of)
        self.group = len(self.slots) // (max(kv_of) + 1)
        self.regular = self.slots == list(range(len(kv_of)))
        self.grouped = _Group(config, layer_idx, self.group)
        self.single = _Group(config, layer_idx, 1)

    def __call__(self, q_BNTH, k_BKSH, v_BKSH, tokens: Tokens):
        """Returns the output [B, T, N, H]."""
        name = self.config._attn_implementation
        function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        scaling = q_BNTH.shape[-1] ** -0.5
        options = {"dropout": 0.0, "scaling": scaling}
        if name not in ("sdpa", "eager"):
            if self.null_keys:
                raise ValueError(
                    f"attention {name!r} cannot show null keys to every query; load the model with "
                    "attn_implementation='sdpa'"
                )
            q_BNTH = take(q_BNTH, self.slots, 1)
            options |= tokens.packed or {}
            out = function(self.grouped, q_BNTH, k_BKSH, v_BKSH, tokens.mask, **options)[0]
            return take(out, self.places, 2)
        if q_BNTH.shape[2] == 1:
            return self._one_token(function, q_BNTH, k_BKSH, v_BKSH, tokens, options)
        group = self.grouped
        if not self.regular:
            group = self.single
            k_BKSH, v_BKSH = take(k_BKSH, self.kv_of, 1), take(v_BKSH, self.kv_of, 1)
        whole = q_BNTH.shape[2] == k_BKSH.shape[2]
        if name == "sdpa" and whole and tokens.real_BS is None and tokens.documents_BT is None:
            return function(group, q_BNTH, k_BKSH, v_BKSH, None, is_causal=True, **options)[0]
        blocks = []
        for begin, end, mask in _blocks(q_BNTH, k_BKSH.shape[2] - self.null_keys, tokens):
            mask = self._with_null_keys(mask)
            q, S = q_BNTH[:, :, begin:end], mask.shape[-1]
            k, v = k_BKSH[:, :, :S], v_BKSH[:, :, :S]
            blocks.append(function(group, q, k, v, mask, is_causal=False, **options)[0])
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _one_token(self, function, q_BN1H, k_BKSH, v_BKSH, tokens: Tokens, options: dict):
        """Passes the query heads of one key/value head as query tokens."""
        B, _, _, H = q_BN1H.shape
        q_BKGH = take(q_BN1H, self.slots, 1).reshape(B, -1, self.group, H)
        mask = None
        if tokens.real_BS is not None:
            mask = tokens.real_BS.clone()
            mask[:, -1] = True
            mask = self._with_null_keys(mask)
            mask = mask[:, None, None].expand(B, 1, self.group, -1)
        out = function(self.single, q_BKGH, k_BKSH, v_BKSH, mask, is_causal=False, **options)[0]
        out_B1NH = out.transpose(1, 2).reshape(B, 1, -1, H)
        return take(out_B1NH, self.places, 2)

    def _with_null_keys(self, mask_S):
        """Puts keys that every query sees before those of a mask."""
        return F.pad(mask_S, (self.null_keys, 0), value=True) if self.null_keys else mask_S


def _blocks(q_BNTH, S: int, tokens: Tokens):
    """Yields (first query, end, mask [B or 1, 1, queries, keys up to the last query]) in turn.

    A padding token sees itself, so that its numbers stay finite; no other token reads them.
    """
    T = q_BNTH.shape[2]
    per_row = tokens.real_BS is not None or tokens.documents_BT is not None
    rows = q_BNTH.shape[0] if per_row else 1
    size = T if is_tracing(q_BNTH) else min(T, max(16, MASK_ELEMENTS // (rows * S)))
    index_S = torch.arange(S, device=q_BNTH.device)
    for begin in range(0, T, size):
        end = min(begin + size, T)
        last = S - T + end
        query_Q1 = index_S[S - T + begin : last, None]
        seen = (index_S[:last] <= query_Q1)[None]
        if tokens.real_BS is not None:
            itself = index_S[:last] == query_Q1
            seen = seen & tokens.real_BS[:, None, :last] | itself
        if tokens.documents_BT is not None:
            documents_BT = tokens.documents_BT
            seen = seen & (documents_BT[:, begin:end, None] == documents_BT[:, None, :last])
        yield begin, end, seen[:, None]
