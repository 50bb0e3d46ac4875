"""Checks what the public functions of attention refuse, in which words, and their defaults."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention, attention_decode
from pallas_kernels.attention.chunked import ChunkedBlocks
from pallas_kernels.attention.gpu.blocks import HopperBlocks, HopperDecodeBlocks, Ring
from pallas_kernels.attention.tpu.blocks import Blocks, TpuBlocks
from pallas_kernels.attention.tpu.decode_blocks import TpuDecodeBlocks
from tests.pallas_kernels.attention.cases import Case, make_inputs
from tests.tolerances import error_ratio

CASE = Case(name="api", length=12, head_dim=8, kv_heads=2, kv_head_of_query=(0, 0, 1, 1))
IDS_BT = jnp.ones((2, 12), jnp.int32)
SQUARE = Blocks(queries=128, keys=128, chain=128, piece=128, skew=1.0)
TPU_BLOCKS = TpuBlocks(forward=SQUARE, backward=SQUARE)
RING = Ring(block=64, stages=2, value_stages=2)


def call(**settings):
    return attention(*make_inputs(CASE)[:3], **settings)


def decode(**settings):
    inputs = make_inputs(CASE)
    return attention_decode(inputs.q_BTNH[:, -1], *inputs[1:3], jnp.array([12, 7]), **settings)


@pytest.mark.parametrize("run", [call, decode])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kv_head_of_query=(0, 1)), r"\(0, 1\) must name one of 2 KV heads for each of 4"),
        (dict(kv_head_of_query=(0, 1, 2, 0)), "must name one of 2 KV heads for each of 4 query"),
        (dict(kv_head_of_query=(0, -1, 0, 0)), "must name one of 2 KV heads for each of 4 query"),
        (dict(window=0), "window=0; a query sees at least itself, so at least 1"),
        (dict(implementation="fast"), "has no implementation 'fast', only .*reference"),
    ],
)
def test_settings_that_do_not_fit(run, settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)


@pytest.mark.parametrize(
    ("run", "implementation", "blocks", "message"),
    [
        (call, "chunked", TPU_BLOCKS, "chunked: blocks is TpuBlocks; ChunkedBlocks is accepted"),
        (call, "reference", ChunkedBlocks(length=4), "reference: .*; it has none to choose"),
        (decode, None, TpuDecodeBlocks(keys=128, form="rows"), "tpu: the device is cpu.* none to"),
    ],
)
def test_blocks_that_are_not_used_are_refused(run, implementation, blocks, message):
    with pytest.raises(NotImplementedError, match=message):
        run(implementation=implementation, blocks=blocks)


@pytest.mark.parametrize(
    ("blocks", "sizes", "message"),
    [
        (ChunkedBlocks, dict(length=0), "length=0; a block has at least one"),
        (TpuBlocks, dict(forward=SQUARE, backward=SQUARE, parts=0), "parts=0; the keys have at"),
        (TpuDecodeBlocks, dict(keys=0, form="rows"), "keys=0 and splits=1 must be positive"),
        (Ring, dict(block=96, stages=2, value_stages=2), "block=96 must be a multiple of 64"),
        (HopperBlocks, dict(forward=RING, dq=RING, dkv=RING, tile_dkv=32), "tile_dkv=32; 64 and"),
        (HopperBlocks, dict(forward=RING, dq=RING, dkv=RING, tile_dkv=64), "dq has 2 .* least 3"),
        (HopperDecodeBlocks, dict(block=64, stages=2, shares=0), "shares=0 must be positive"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(blocks, sizes, message):
    with pytest.raises(ValueError, match=message):
        blocks(**sizes)


@pytest.mark.parametrize("run", [attention, attention_decode])
def test_irregular_heads_need_a_map(run):
    q, k, v, *_ = make_inputs(CASE)
    arrays = (q[:, :, :3], k, v) if run is attention else (q[:, 0, :3], k, v, jnp.array([1, 1]))
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2 KV heads; say"):
        run(*arrays)


def test_segments_that_do_not_fit():
    q, k, v, *_ = make_inputs(CASE)
    with pytest.raises(ValueError, match="kv_segment_ids_BS needs segment_ids_BT beside it"):
        call(kv_segment_ids_BS=IDS_BT)
    with pytest.raises(ValueError, match="5 queries and 12 keys: segments need kv_segment_ids_BS"):
        attention(q[:, :5], k, v, segment_ids_BT=IDS_BT[:, :5])
    with pytest.raises(ValueError, match="come together or not at all"):
        decode(segment_ids_B=IDS_BT[:, 0])
    with pytest.raises(ValueError, match="come together or not at all"):
        decode(kv_segment_ids_BS=IDS_BT)


def test_defaults():
    """The defaults are regular groups, causal, scale 1 / sqrt(H), and no lse.

    The keys' segments are those of the queries, and a window is causal.
    """
    ids_BT = jnp.asarray(np.arange(12) // 5 + 1, jnp.int32)[None].repeat(2, 0)
    plain = call(segment_ids_BT=ids_BT)
    said = call(
        segment_ids_BT=ids_BT,
        kv_segment_ids_BS=ids_BT,
        kv_head_of_query=(0, 0, 1, 1),
        causal=True,
        scale=8**-0.5,
        return_lse=True,
    )
    np.testing.assert_array_equal(plain, said[0])
    assert said[1].shape == plain.shape[:3]
    np.testing.assert_array_equal(call(window=3, causal=False), call(window=3))


def test_decode_defaults():
    out_BNH, lse_BN = decode(return_lse=True)
    assert error_ratio(decode(scale=8**-0.5, kv_head_of_query=(0, 0, 1, 1)), out_BNH) == 0
    assert lse_BN.shape == out_BNH.shape[:2]
