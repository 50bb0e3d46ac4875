"""Runs slot attention for KV heads of equally many query heads at a time."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.head_groups import head_groups, pick_heads, place_heads
from pallas_kernels.slot_attention.state import SlotState
from pallas_kernels.slot_attention.writes import Writes


def run_groups(
    run, q_BTNH, writes: Writes, state: SlotState, kv_head_of_query: tuple[int, ...]
) -> tuple:
    """Returns output, log-sum-exp, and `state` with its slots after the last write.

    Args:
      run: (q_BTNH, writes, (k_slots_BKMH, v_slots_BKMH)) -> (out_BTNH, lse_BTN), new slots, for
        heads where KV head n is read by the n-th N / K query heads. N may be 0.
    """
    N, K = q_BTNH.shape[2], writes.k_BTKH.shape[2]
    groups = [(group.kv, group.queries) for group in head_groups(kv_head_of_query)]
    if unread := tuple(sorted(set(range(K)) - set(kv_head_of_query))):
        groups.append((unread, ()))
    results, slots = [], []
    for kv, queries in groups:
        of_group = Writes(*(pick_heads(x, kv) for x in writes[:3]), *writes[3:])
        slots_of = tuple(x[:, np.array(kv)] for x in state[:2])
        found, new_slots = run(pick_heads(q_BTNH, queries), of_group, slots_of)
        results.append(found)
        slots.append(new_slots)
    kv, queries = map(list, zip(*groups, strict=True))
    out_BTNH, lse_BTN = (place_heads(list(x), queries, N) for x in zip(*results, strict=True))
    k_slots, v_slots = (
        jnp.concatenate(x, axis=1)[:, np.argsort(sum(kv, ()))] for x in zip(*slots, strict=True)
    )
    return out_BTNH, lse_BTN, state._replace(k_slots_BKMH=k_slots, v_slots_BKMH=v_slots)
