"""Computes softmax attention over rows that lie on several ranks: keys go round in a ring.

Every rank keeps its queries. The keys and values of all ranks pass by, and the parts are merged by
their log-sum-exps (arXiv 2310.01889). The backward goes round once more, with the gradients of keys
and values travelling beside them. It does not repeat the forward of any part, because output and
log-sum-exp over all keys determine every weight.

In zigzag order only the first step needs a causal mask. All queries see the low chunk of a rank
before and nothing of its high one; the high chunk's queries see all of a rank after, the low
chunk's nothing.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from hydrahead_jax.context.order import Order
from hydrahead_jax.context.ranks import around, vary_over
from hydrahead_jax.context.visible import over_visible
from hydrahead_jax.ops.null_keys import with_null_keys
from pallas_kernels import attention, attention_gradients
from pallas_kernels.attention.merge import merge


def ring_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    *,
    axis: str,
    order: Order,
    kv_head_of_query: tuple[int, ...] | None = None,
    segment_ids_BT: Int[Array, "B T"] | None = None,
    null_keys: int = 0,
    implementation: str | None = None,
    interpret=False,
) -> Float[Array, "B T N H"]:
    """Computes causal `pallas_kernels.attention` of complete rows, inside `jax.shard_map`.

    Differentiable in q, k and v. The backward reads the arguments, the output and the log-sum-exp,
    the last two under the names "attention_out" and "attention_lse". Parts come in the dtype of q
    and are added up in float32, or in float64 for float64.

    Args:
      q_BTNH: this rank's tokens, as are all arrays with a T.
      axis: the mesh axis that the tokens lie over.
      order: the order in which they lie. In contiguous order a rank waits for those after it.
      null_keys: keys of logit 0 and value 0 that every query sees too.

    Other arguments and errors are those of `attention`; of its implementations "tpu", "gpu",
    "chunked" and "reference".
    """
    if order == "zigzag" and q_BTNH.shape[1] % 2:
        raise ValueError(f"{q_BTNH.shape[1]} tokens a rank; zigzag order has two chunks a rank")
    if kv_head_of_query is not None:
        kv_head_of_query = tuple(kv_head_of_query)
    how = How(axis, order, kv_head_of_query, null_keys, implementation, interpret)
    return _ring(how, *vary_over(axis, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT))


@dataclasses.dataclass(frozen=True)
class How:
    """Says what is known while tracing."""

    axis: str
    order: Order
    kv_head_of_query: tuple[int, ...] | None
    null_keys: int
    implementation: str | None
    interpret: Any

    def __hash__(self):
        return hash(
            (self.axis, self.order, self.kv_head_of_query, self.null_keys, self.implementation)
        )

    def kernel(self, queries, keys, *, causal: bool) -> dict:
        """Returns the arguments of both kernels."""
        return dict(
            kv_head_of_query=self.kv_head_of_query,
            causal=causal,
            segment_ids_BT=queries.segment_ids_BT,
            kv_segment_ids_BS=keys.segment_ids_BT,
            implementation=self.implementation,
            interpret=self.interpret,
        )

    def visible(self, compute, fills, queries, keys, distance):
        places = dict(axis=self.axis, order=self.order, distance=distance)
        return over_visible(compute, fills, queries, keys, **places)

    def distances(self):
        """Returns the distances to the ranks that the keys come from, after this rank's own."""
        return jnp.arange(1, jax.lax.axis_size(self.axis))


class Keys(NamedTuple):
    """Carries what travels round the ring."""

    k_BTKH: jax.Array
    v_BTKH: jax.Array
    segment_ids_BT: jax.Array | None


class Queries(NamedTuple):
    """Carries what stays on its rank; all but the first two only in the backward."""

    q_BTNH: jax.Array
    segment_ids_BT: jax.Array | None
    out_BTNH: jax.Array | None = None
    lse_BTN: jax.Array | None = None
    dout_BTNH: jax.Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(how: How, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    return _forward(how, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)[0]


def _forward(how: How, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    queries = Queries(q_BTNH, segment_ids_BT)
    keys = Keys(k_BTKH, v_BTKH, segment_ids_BT)

    def part(queries, keys, causal=False):
        settings = how.kernel(queries, keys, causal=causal)
        return attention(queries.q_BTNH, *keys[:2], return_lse=True, **settings), ()

    def step(carry, distance):
        keys, so_far = carry
        following = around(keys, how.axis)
        found, _ = how.visible(part, (0.0, -jnp.inf), queries, keys, distance)
        following, found = _together(following, found)
        both = (jnp.stack([x, y.astype(x.dtype)]) for x, y in zip(so_far, found, strict=True))
        return (following, merge(*both)), None

    out_BTNH, lse_BTN = part(queries, keys, causal=True)[0]
    start = (around(keys, how.axis), (out_BTNH.astype(lse_BTN.dtype), lse_BTN))
    (_, (out_BTNH, lse_BTN)), _ = jax.lax.scan(step, start, how.distances())
    if how.null_keys:  # the backward learns of them by the log-sum-exp
        out_BTNH, lse_BTN = with_null_keys(out_BTNH, lse_BTN, count=how.null_keys)
    out_BTNH = checkpoint_name(out_BTNH.astype(q_BTNH.dtype), "attention_out")
    lse_BTN = checkpoint_name(lse_BTN, "attention_lse")
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, out_BTNH, lse_BTN)


def _backward(how: How, saved, dout_BTNH):
    q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, out_BTNH, lse_BTN = saved
    queries = Queries(q_BTNH, segment_ids_BT, out_BTNH, lse_BTN, dout_BTNH)
    keys = Keys(k_BTKH, v_BTKH, segment_ids_BT)

    def part(queries, keys, causal=False):
        settings = how.kernel(queries, keys, causal=causal)
        of_queries = (queries.out_BTNH, queries.lse_BTN, queries.dout_BTNH)
        dq_BTNH, *dkv = attention_gradients(queries.q_BTNH, *keys[:2], *of_queries, **settings)
        return (dq_BTNH,), tuple(dkv)

    def step(carry, distance):
        keys, sums = carry
        following, of_keys = around((keys, sums[1]), how.axis)
        found = how.visible(part, (0.0,), queries, keys, distance)
        following, of_keys, found = _together(following, of_keys, found)
        sums = jax.tree.map(lambda total, x: total + x, (sums[0], of_keys), found)
        return (following, sums), None

    own = part(queries, keys, causal=True)
    start = (around(keys, how.axis), jax.tree.map(lambda x: x.astype(lse_BTN.dtype), own))
    (_, ((dq_BTNH,), dkv)), _ = jax.lax.scan(step, start, how.distances())
    gradients = (dq_BTNH, *around(dkv, how.axis))
    return *(x.astype(q_BTNH.dtype) for x in gradients), None


_ring.defvjp(_forward, _backward)


def _together(*trees):
    """Makes whatever uses any of the trees wait for all of them.

    A compiler then hides the exchange with other ranks behind the kernel, where its own estimate
    may find the few additions after it enough.
    """
    return jax.lax.optimization_barrier(trees)
