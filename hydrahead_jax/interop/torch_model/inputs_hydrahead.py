"""Turns the arguments of `forward` into what every layer knows of its tokens."""

import torch
import torch.nn.functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask
from transformers.utils.import_utils import is_tracing

from .cache_hydrahead import CACHE_FIELD
from .documents_hydrahead import find_documents, positions_in_documents
from .tokens_hydrahead import Tokens, default_positions, real_tokens, rotary_angles


def read_tokens(config, x_BTD, attention_mask, position_ids, past, kwargs: dict) -> Tokens:
    """Returns positions, padding and documents of the tokens of one call.

    Args:
      config: of the model.
      x_BTD: embedded tokens.
      attention_mask, position_ids: as `forward` takes them.
      past: the DynamicCache before these tokens, or None.
      kwargs: other keywords of `forward`.

    Raises:
      ValueError: they do not fit each other.
    """
    B, T, _ = x_BTD.shape
    device = x_BTD.device
    seen, real_BS = 0, None
    if past is not None:
        seen, real_BS = past.get_seq_length(), past.layers[0].real_BS
        if seen and past.batch_size != B:
            raise ValueError(f"the cache holds {past.batch_size} rows, and the input has {B}")
    if position_ids is not None:
        if tuple(position_ids.shape) not in ((B, T), (1, T)):
            shape = tuple(position_ids.shape)
            raise ValueError(f"position_ids has shape {shape}; it must be ({B}, {T})")
        position_ids = position_ids.to(device)
    real_BT, real_BS = real_tokens(attention_mask, real_BS, seen, B, T, device)
    cu_seq_lens, seq_idx = kwargs.get("cu_seq_lens_q"), kwargs.get("seq_idx")
    looked_at = None if past is not None and is_tracing(x_BTD) else position_ids
    documents_BT = find_documents(looked_at, cu_seq_lens, seq_idx, attention_mask, seen, B, T)
    if documents_BT is not None:
        if real_BT is not None:
            raise ValueError("documents in one row go without attention_mask; leave it out")
        documents_BT = documents_BT.to(device)
        if position_ids is None:
            position_ids = positions_in_documents(documents_BT)
    if position_ids is None:
        position_ids = default_positions(real_BS, seen, T, device)
    theta, head_dim = config.rope_theta, config.head_dim
    return Tokens(
        position_ids.clamp(min=0),
        *rotary_angles(position_ids.clamp(min=0), theta, head_dim),
        real_BT=real_BT,
        real_BS=real_BS,
        documents_BT=documents_BT,
        packed=_flash_keywords(config, documents_BT),
        mask=_library_mask(config, x_BTD, real_BS, position_ids, documents_BT, past),
    )


def _library_mask(config, x_BTD, real_BS, position_ids, documents_BT, past):
    """Makes the mask in the form of attention implementations such as flex_attention."""
    name = config._attn_implementation
    if name in ("sdpa", "eager"):
        return None
    if real_BS is not None and name not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise ValueError(
            f"attention {name!r} has no mask function, so padding cannot be hidden; register one, "
            "or load the model with attn_implementation='sdpa'"
        )
    return create_causal_mask(
        config=config,
        inputs_embeds=x_BTD,
        attention_mask=real_BS,
        position_ids=None if documents_BT is None else position_ids,
        **{CACHE_FIELD: past if documents_BT is None else None},
    )


def _flash_keywords(config, documents_BT) -> dict | None:
    """Says where documents begin, for attention implementations that read no mask."""
    name = config._attn_implementation
    if documents_BT is None or name in ("sdpa", "eager", "flex_attention"):
        return None
    if len(documents_BT) != 1:
        raise ValueError(
            f"attention {name!r} keeps the documents of one row apart only; flatten the batch, or "
            "load the model with attn_implementation='sdpa'"
        )
    begins_T = F.pad(documents_BT[0].diff() != 0, (1, 1), value=True)
    cu_seq_lens = begins_T.nonzero()[:, 0].to(torch.int32)
    longest = int(cu_seq_lens.diff().max())
    return {
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }
