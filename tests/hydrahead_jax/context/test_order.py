"""Checks orders of tokens, and what is refused before anything is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from hydrahead_jax.context.halo import context_short_conv
from hydrahead_jax.context.order import from_order, to_order
from hydrahead_jax.context.ring import ring_attention


def test_zigzag_gives_rank_r_chunks_r_and_its_mirror():
    found = to_order(jnp.arange(24)[None], 3, "zigzag")
    assert found.reshape(3, 2, 4)[:, :, 0].tolist() == [[0, 20], [4, 16], [8, 12]]


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_from_order_is_the_opposite(order, ranks):
    x = np.arange(2 * 24 * 5).reshape(2, 24, 5)
    for axis, moved in ((1, x), (0, x.swapaxes(0, 1)), (2, x.swapaxes(1, 2))):
        there = to_order(moved, ranks, order, axis=axis)
        assert (there != moved).any() == (order == "zigzag" and ranks > 1)
        np.testing.assert_array_equal(from_order(there, ranks, order, axis=axis), moved)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("contiguous", "20 tokens do not divide into the 8 chunks .* such as 24"),
        ("zigzag", "20 tokens do not divide into the 16 chunks .* such as 32"),
    ],
)
def test_refuses_rows_that_do_not_divide(order, words):
    with pytest.raises(ValueError, match=words):
        to_order(jnp.zeros((1, 20)), 8, order)


def on_one_rank(function, *arrays):
    mesh = Mesh(np.array(jax.devices()[:1]), ("context",))
    run = functools.partial(function, axis="context", order="zigzag")
    places = (PartitionSpec(None, "context"),) * len(arrays)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=places, out_specs=places[0])
    return jax.eval_shape(mapped, *arrays)


def test_refuses_chunks_shorter_than_the_convolution():
    x_BTNH, ids_BT = jnp.zeros((1, 4, 1, 2)), jnp.ones((1, 4), jnp.int32)
    conv = lambda x, ids, **where: context_short_conv(
        x, jnp.zeros((4, 1, 2)), x[:, :3], ids, ids[:, :3], **where
    )
    with pytest.raises(ValueError, match=r"chunks of 2 tokens; .* of 4 taps .* needs at least 3"):
        on_one_rank(conv, x_BTNH, ids_BT)


def test_refuses_an_odd_number_of_tokens_a_rank():
    x_BTNH = jnp.zeros((1, 5, 1, 2))
    with pytest.raises(ValueError, match="5 tokens a rank; zigzag order has two chunks"):
        on_one_rank(ring_attention, x_BTNH, x_BTNH, x_BTNH)
