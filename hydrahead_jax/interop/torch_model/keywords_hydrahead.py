"""Checks every keyword of `forward`: it is computed, or it is refused."""

LOSS_KEYWORDS = ("num_items_in_batch", "ignore_index", "shift_labels", "weight")
PACKED_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
NOT_ASKED = {  # keywords of transformers, and the values with which they ask for nothing
    "cache_position": (None,),
    "is_causal": (None, True),
    "output_attentions": (None, False),
    "output_router_logits": (None, False),
}


def check_keywords(kwargs: dict, config):
    """Raises TypeError for keywords that `forward` does not know, ValueError for their values."""
    attentions = kwargs.get("output_attentions")
    if config.output_attentions if attentions is None else attentions:
        raise ValueError(
            "output_attentions=True is not supported: heads with the delta rule have no attention "
            "matrix"
        )
    for name, value in kwargs.items():
        if name in PACKED_KEYWORDS:
            continue
        if name not in NOT_ASKED:
            raise TypeError(f"forward() does not compute {name}; leave it out")
        if not any(value is harmless for harmless in NOT_ASKED[name]):
            raise ValueError(f"{name}={value!r:.40} is not supported; leave it out")
    lengths_q, lengths_k = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
    if lengths_k is not None and lengths_q is None:
        raise ValueError("cu_seq_lens_k was given without cu_seq_lens_q")


def check_not_empty(tokens):
    """Raises ValueError where there is no row, or no token in the rows."""
    if 0 in tokens.shape[:2]:
        raise ValueError(f"an input of shape {tuple(tokens.shape)} holds no token")
