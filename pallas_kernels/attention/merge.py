"""Merges attention over parts of the keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def merge(
    out_XBNH: Float[Array, "X *B H"], lse_XBN: Float[Array, "X *B"]
) -> tuple[Float[Array, "*B H"], Float[Array, "*B"]]:
    """Returns output and log-sum-exp over all keys, from those over X parts of the keys.

    Each part's output is weighted by its share exp(lse) of the complete softmax. A part whose lse
    is -inf saw nothing and has no weight; where every part is so, the output is 0 and the
    log-sum-exp -inf. Sums have the dtype of lse, the output that of the parts. Differentiable in
    both. An lse is only as exact as its dtype: at 1e4, float32 leaves the shares an error of 5e-4.
    """
    seen_XBN = lse_XBN > -jnp.inf
    seen_BN = jnp.any(seen_XBN, axis=0)
    peak_BN = jnp.where(seen_BN, jnp.max(lse_XBN, axis=0), 0.0)
    peak_BN = jax.lax.stop_gradient(peak_BN)
    share_XBN = jnp.exp(jnp.where(seen_XBN, lse_XBN - peak_BN, -jnp.inf))
    total_BN = jnp.where(seen_BN, jnp.sum(share_XBN, axis=0), 1.0)
    sum_BNH = jnp.sum(share_XBN[..., None] * out_XBNH, axis=0)
    lse_BN = jnp.where(seen_BN, peak_BN + jnp.log(total_BN), -jnp.inf)
    return (sum_BNH / total_BN[..., None]).astype(out_XBNH.dtype), lse_BN
