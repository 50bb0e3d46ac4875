"""Compares attention over parts of the keys, merged by the log-sum-exp, with all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention
from pallas_kernels.attention.merge import merge
from tests.pallas_kernels.attention.cases import Case
from tests.pallas_kernels.attention.suite import ATTENTION

CASES = [
    Case(name="halves"),
    Case(name="halves, window 64, middle padding", window=64, segments="middle padding"),
    Case(name="halves, one logit at 1e4", logits="one at 1e4"),
    Case(name="halves, bf16", dtype="bfloat16"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_parts_of_the_keys_equal_the_whole(case):
    """This holds forward and backward. No query of the first part sees the second part's keys."""
    cut = 70

    def run(q, k, v, q_start, segment_ids, kv_segment_ids):
        def part(keys: slice):
            return attention(
                q,
                k[:, keys],
                v[:, keys],
                kv_head_of_query=case.kv_head_of_query,
                window=case.window,
                segment_ids_BT=segment_ids,
                kv_segment_ids_BS=None if segment_ids is None else kv_segment_ids[:, keys],
                q_start=q_start - keys.start,
                scale=case.scale,
                return_lse=True,
                implementation="chunked",
            )

        parts = part(slice(0, cut)), part(slice(cut, case.S))
        return merge(*map(jnp.stack, zip(*parts, strict=True)))

    ATTENTION.check(run, case)


def test_parts_that_saw_nothing_count_nothing():
    rng = np.random.default_rng(0)
    out_XBNH = jnp.asarray(rng.normal(size=(3, 2, 1, 4)), jnp.float32)
    lse_XBN = jnp.array([[[0.5], [-np.inf]], [[-np.inf], [-np.inf]], [[1.5], [-np.inf]]])
    out_BNH, lse_BN = merge(out_XBNH, lse_XBN)
    share = np.exp(-1.0) / (1 + np.exp(-1.0))
    wanted = share * out_XBNH[0, 0] + (1 - share) * out_XBNH[2, 0]
    np.testing.assert_allclose(out_BNH[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(lse_BN[0], np.logaddexp(0.5, 1.5), rtol=1e-6)
    assert not np.any(out_BNH[1]) and np.all(np.isneginf(lse_BN[1]))

    def loss(out_XBNH, lse_XBN):
        out_BNH, lse_BN = merge(out_XBNH, lse_XBN)
        return jnp.sum(out_BNH**2) + jnp.sum(jnp.where(jnp.isfinite(lse_BN), lse_BN, 0.0))

    dout_XBNH, dlse_XBN = jax.grad(loss, (0, 1))(out_XBNH, lse_XBN)
    assert np.all(np.isfinite(dout_XBNH)) and np.all(np.isfinite(dlse_XBN))
    assert not np.any(dout_XBNH[1]) and not np.any(dout_XBNH[:, 1]) and np.all(dlse_XBN[1] == 0)
    assert np.any(dout_XBNH[0, 0]) and np.any(dlse_XBN[0, 0])
