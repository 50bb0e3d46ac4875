"""Attention against one softmax at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.ops.attention import attention
from tests.tolerances import OP, assert_close


def naive(q, k, v, mask, kv_head_of_query):
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, t, n in np.ndindex(q.shape[:3]):
        kv, seen = kv_head_of_query[n], np.flatnonzero(mask[b, t])
        if len(seen):
            scores = k[b, seen, kv] @ q[b, t, n] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, seen, kv] / weights.sum()
    return out


def make(kv_heads=2, query_heads=4, size=1.0):
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.normal(size=shape) * size).astype(np.float32)
    mask = rng.random((2, 5, 7)) < 0.5
    mask[0, 1] = mask[1, 4] = False
    return draw(2, 5, query_heads, 8), draw(2, 7, kv_heads, 8), draw(2, 7, kv_heads, 8), mask


@pytest.mark.parametrize(
    "kv_head_of_query",
    [(0, 0, 1, 1), (0, 1, 0, 1), (1, 1, 1, 0), (1, 1, 1, 1)],
    ids=["grouped", "alternating", "uneven", "one KV head unread"],
)
def test_equals_the_loop(kv_head_of_query):
    arrays = make()
    out = attention(*map(jnp.asarray, arrays), kv_head_of_query)
    assert_close(out, naive(*arrays, kv_head_of_query), OP)


def test_a_query_that_sees_nothing_gives_zero_and_zero_gradients():
    q, k, v, mask = map(jnp.asarray, make())
    loss = lambda q, k, v: jnp.sum(attention(q, k, v, mask, (0, 0, 1, 1)) ** 2)
    out, gradients = attention(q, k, v, mask, (0, 0, 1, 1)), jax.grad(loss, (0, 1, 2))(q, k, v)
    assert not np.any(out[0, 1]) and not np.any(out[1, 4])
    assert np.any(out[0, 0]) and not np.any(gradients[0][0, 1])
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_large_scores_do_not_overflow():
    arrays = make(size=100.0)
    out = attention(*map(jnp.asarray, arrays), (0, 0, 1, 1))
    assert_close(out, naive(*arrays, (0, 0, 1, 1)), OP)


def test_low_precision_is_summed_in_float32():
    """bf16 in, bf16 out; the error is that of rounding the weights and the result."""
    q, k, v, mask = make()
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = attention(*low, jnp.asarray(mask), (0, 0, 1, 1))
    assert out.dtype == jnp.bfloat16
    wide = [np.asarray(x, np.float64) for x in low]
    assert_close(out, naive(*wide, mask, (0, 0, 1, 1)), 2**-7)
