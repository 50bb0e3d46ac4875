"""Checks how the TPU kernels of slot attention divide heads and chunks, and what they refuse."""

import jax.numpy as jnp
import pytest

from pallas_kernels import slot_attention
from pallas_kernels.slot_attention.tpu.blocks import CHUNK, TpuBlocks, choose_blocks, weight
from tests.pallas_kernels.slot_attention.cases import Case, make_inputs
from tests.pallas_kernels.slot_attention.suite import SLOT_ATTENTION, call, static


def shares(
    batch=1, kv_heads=8, readers=2, chunks=64, device_kind="TPU v6 lite", chosen=None, itemsize=2
):
    return choose_blocks(
        kv_heads,
        readers,
        chunks * CHUNK,
        batch,
        device_kind,
        chosen,
        weight=weight(readers, 128, itemsize),
    )


@pytest.mark.parametrize(("kv_heads", "heads"), [(8, 8), (16, 8), (9, 3), (11, 6), (1, 1)])
def test_up_to_eight_kv_heads_a_program(kv_heads, heads):
    for found in shares(kv_heads=kv_heads):
        assert found.kv_heads == heads


def test_few_heads_take_more_chunks_at_once():
    assert [x.pieces for x in shares(kv_heads=2)] == [8, 8]
    assert [x.pieces for x in shares(kv_heads=2, chunks=11)] == [1, 1]


def test_a_device_of_two_cores_gets_two_programs():
    assert shares(device_kind="TPU v5")[0].kv_heads == 4
    assert shares(device_kind="TPU v5", batch=2)[0].kv_heads == 8


def test_large_heads_leave_room_in_memory():
    assert [x.kv_heads * x.pieces for x in shares(readers=4)] == [8, 8]
    assert [x.kv_heads * x.pieces for x in shares(readers=8)] == [4, 4]
    assert [x.kv_heads * x.pieces for x in shares(itemsize=4)] == [4, 4]


@pytest.mark.interpreter("tpu")
def test_unread_heads_and_filled_up_sizes_change_nothing():
    """A KV head has no readers; slots and head size are filled up."""
    case = Case(name="dealt", length=20, batch=1, heads=(1, 1), slots=5, segments="mixed")
    SLOT_ATTENTION.check(call("tpu", True, *static(case)), case)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 chunks of a step must divide the 64 of a row"):
        shares(chosen=TpuBlocks(kv_heads=2, backward_chunks=3))
    with pytest.raises(ValueError, match="must have positive sizes"):
        TpuBlocks(kv_heads=0)
    run = lambda case, **options: slot_attention(
        *make_inputs(case)[:4],
        shift=1,
        kv_head_of_query=case.heads,
        implementation="tpu",
        interpret=True,
        **options,
    )
    with pytest.raises(NotImplementedError, match="136 slots a head; at most 128 are accepted"):
        run(Case(name="slots", length=4, slots=136))
    with pytest.raises(NotImplementedError, match="the head dimension is 300; at most 256"):
        run(Case(name="head", length=4, head_dim=300))
    with pytest.raises(NotImplementedError, match="33 query heads read one KV head; at most 8 of"):
        run(Case(name="readers", length=4, heads=(0,) * 33, kv_heads=1))
    q, k, v, log_forget = make_inputs(Case(name="blocks", length=4, heads=(0, 1)))[:4]
    with pytest.raises(NotImplementedError, match="blocks is TpuBlocks; it has none to choose"):
        chosen = {"implementation": "chunked", "blocks": TpuBlocks(kv_heads=1)}
        slot_attention(q, k, v, log_forget, shift=1, **chosen)
    with pytest.raises(NotImplementedError, match="q, k and v are bfloat16, float32"):
        tpu = {"implementation": "tpu", "interpret": True}
        slot_attention(q.astype(jnp.bfloat16), k, v, log_forget, shift=1, **tpu)
