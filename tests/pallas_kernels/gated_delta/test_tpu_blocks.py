"""Checks how heads are divided among programs of the TPU kernels."""

import pytest

from pallas_kernels.gated_delta.problem import Problem
from pallas_kernels.gated_delta.tpu.blocks import CHUNK, TpuBlocks, choose_blocks
from tests.pallas_kernels.gated_delta.cases import Case
from tests.pallas_kernels.gated_delta.suite import GATED_DELTA, call


def shares(
    batch=1,
    key_heads=16,
    value_heads=16,
    size=128,
    dtype="bfloat16",
    device_kind="TPU v6 lite",
    chunks=64,
    chosen=None,
):
    problem = Problem(
        T=chunks * CHUNK, K=key_heads, N=value_heads, H=size, P=size, dtype=dtype, scale=1.0
    )
    return choose_blocks(problem, batch, device_kind, chosen)


@pytest.mark.parametrize(
    ("key_heads", "value_heads", "heads", "own_keys", "sharing"),
    [
        (16, 16, 16, 16, 1),
        (17, 17, 9, 9, 1),  # padded to 18
        (23, 23, 12, 12, 1),
        (8, 32, 16, 4, 1),
        (1, 64, 16, 1, 4),  # four programs read one key head
        (1, 1, 1, 1, 1),
    ],
)
def test_up_to_sixteen_heads_in_whole_groups(key_heads, value_heads, heads, own_keys, sharing):
    for found in shares(key_heads=key_heads, value_heads=value_heads):
        assert (found.heads, found.key_heads) == (heads, own_keys)
        assert found.programs_a_key_head == sharing


def test_few_heads_take_more_chunks_at_once():
    forward, backward = shares(key_heads=4, value_heads=4)
    assert forward.heads * forward.pieces == backward.heads * backward.pieces == 16
    assert shares(key_heads=4, value_heads=4, chunks=7)[0].pieces == 1


def test_a_device_of_two_cores_gets_two_programs():
    assert shares(device_kind="TPU v5")[0].heads == 8
    assert shares(device_kind="TPU v5", batch=2)[0].heads == 16


def test_large_heads_leave_room_in_memory():
    assert shares(size=256, dtype="float32")[0].heads < 16


@pytest.mark.interpreter("tpu")
@pytest.mark.parametrize(("key_heads", "value_heads"), [(3, 3), (1, 4)])
def test_filled_up_heads_and_shared_key_heads_change_nothing(key_heads, value_heads):
    """Programs take two heads: one of them may be zeros, and two programs may share a key head."""
    case = Case(name="dealt", length=20, key_heads=key_heads, value_heads=value_heads)
    GATED_DELTA.check(call("tpu", True, blocks=TpuBlocks(heads=2)), case)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads=3 must be a multiple or a divisor of the 2 value"):
        shares(key_heads=2, value_heads=4, chosen=TpuBlocks(heads=3))
    with pytest.raises(ValueError, match="3 chunks of a step must divide the 64 of a row"):
        shares(chosen=TpuBlocks(heads=2, backward_chunks=3))
    with pytest.raises(ValueError, match="must have positive sizes"):
        TpuBlocks(heads=0)
