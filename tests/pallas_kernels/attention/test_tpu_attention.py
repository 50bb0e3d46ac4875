"""Runs the TPU kernels in the interpreter; blocks are so small that short rows have many."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.tpu.blocks import Blocks, TpuBlocks
from tests.pallas_kernels.attention.cases import CASES, Case, wide
from tests.pallas_kernels.attention.suite import ATTENTION, run_case
from tests.pallas_kernels.kit.cases import in_dtype

SQUARE = Blocks(queries=128, keys=128, chain=128, piece=128, skew=1.0)
WIDE = Blocks(queries=256, keys=128, chain=128, piece=128, skew=1.0)
TALL = Blocks(queries=128, keys=256, chain=128, piece=128, skew=1.0)
LONG = Case(name="T=300", length=300, kv_head_of_query=(1, 0, 1))
TRIED = [
    (LONG, SQUARE, 1),
    (LONG, SQUARE, 2),
    (LONG, WIDE, 1),
    (LONG, TALL, 1),
    (dataclasses.replace(LONG, name="window 130", window=130), SQUARE, 3),
    (dataclasses.replace(LONG, name="packed", segments="packed"), SQUARE, 1),
    (dataclasses.replace(LONG, name="mixed", segments="mixed", traced=True), SQUARE, 2),
    *(
        (next(case for case in CASES if case.name == name), SQUARE, parts)
        for name, parts in (
            ("start in the middle, traced", 1),
            ("start before the keys, traced", 2),
            ("start after the keys, traced", 1),
            ("more queries than keys", 1),
            ("not causal, T != S", 2),
            ("window 64, start near the end", 1),
            ("heads (0, 2, 2, 3), one unread", 2),
            ("strangers", 1),
            ("logits +-1e4", 1),
            ("logits near -1e4", 1),
            ("scale -0.3", 1),
        )
    ),
]


interpreter = pytest.mark.interpreter("tpu")


def assert_right(case: Case, blocks: Blocks, parts: int):
    chosen = TpuBlocks(forward=blocks, backward=blocks, parts=parts)
    races = pltpu.InterpretParams(detect_races=True)
    ATTENTION.check(run_case("tpu", case, races, blocks=chosen), case)


@interpreter
@pytest.mark.parametrize(
    ("case", "blocks", "parts"),
    TRIED,
    ids=lambda x: x.name if isinstance(x, Case) else str(getattr(x, "queries", x)),
)
def test_results_and_gradients_equal_float64(case, blocks, parts):
    assert_right(in_dtype(wide(case, 128), "bfloat16"), blocks, parts)


@interpreter
def test_float32():
    case = dataclasses.replace(wide(LONG, 128), name="float32", segments="packed", length=200)
    assert_right(case, SQUARE, 2)


@interpreter
def test_two_heads_of_a_kv_head_add_up_over_two_parts():
    """Each part sums over all heads of its KV head, which are a group of their own."""
    case = dataclasses.replace(LONG, name="groups", kv_head_of_query=(0, 0, 1, 1))
    assert_right(in_dtype(wide(case, 128), "bfloat16"), SQUARE, 2)


@interpreter
def test_scale_zero_is_a_mean():
    case = in_dtype(wide(Case(name="scale 0.0", scale=0.0), 128), "bfloat16")
    assert_right(case, SQUARE, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(dtype=jnp.float16), "all bfloat16 or all float32"),
        (dict(H=512), "the head dimension is 512; at most 256"),
        (dict(T=600_000), "600000 tokens; at most 524288"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(arrays, message):
    sizes = dict(T=8, H=128, dtype=jnp.bfloat16) | arrays
    x = jax.ShapeDtypeStruct((1, sizes["T"], 1, sizes["H"]), sizes["dtype"])
    call = run_case("tpu", Case(name="x", kv_head_of_query=(0,)), True)
    with pytest.raises(NotImplementedError, match=message):
        jax.eval_shape(lambda q: call(q, q, q, 0, None, None), x)
