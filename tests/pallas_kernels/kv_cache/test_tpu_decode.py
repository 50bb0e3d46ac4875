"""Runs the TPU kernel over an encoded cache in the TPU interpreter, against float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.kv_cache.nibbles import unpack
from pallas_kernels.kv_cache.tpu.blocks import TpuPackedBlocks, tiles_of
from pallas_kernels.kv_cache.tpu.decode import CODES_UNIT, load_codes
from pallas_kernels.kv_cache.ultraquant import LEVELS
from tests.pallas_kernels.kv_cache.test_gpu_decode import Case, arguments, step
from tests.tolerances import KERNEL, error_ratio

BLOCKS = TpuPackedBlocks(keys=128, splits=2)
CASES = [
    Case(name="a bit of all", heads=(2, 2, 0), lengths=(304, 129), segments=True, window=270),
    Case(name="heads, one unread", heads=(0, 2, 2, 3)),
    Case(name="heads of 128, window 70", head_dim=128, slots=400, window=70, hostile="zeros"),
    Case(name="heads of 256", head_dim=256, hostile="huge channels"),
    Case(name="many readers", heads=(0,) * 17, slots=300, lengths=(300, 1), hostile="tiny"),
    Case(name="scale -0.3, window 1", scale=-0.3, window=1),
    Case(name="two tiles", head_dim=128, heads=(3, 1, 0, 2, 0, 1, 2, 3, 0, 1)),
    Case(name="sinks and recent tokens", sinks=3, recent=20),
]
TESTED = [
    pytest.param(case, marks=[pytest.mark.heavy] if number else [], id=case.name)
    for number, case in enumerate(CASES)
]
interpreter = pytest.mark.interpreter("tpu")


@interpreter
@pytest.mark.parametrize("case", TESTED)
def test_equals_the_reference(case):
    """The kernel gets its queries rotated and rounded to bf16, so the reference gets these back."""
    q_BNH, *others = arguments(case)
    found = step(case, "tpu", pltpu.InterpretParams(detect_races=True), BLOCKS)(q_BNH, *others)
    rotate = case.format.keys.rotate
    q_BNH = rotate(rotate(q_BNH).astype(jnp.bfloat16))
    wanted = step(case, "reference")(q_BNH, *others)
    (out, lse), (wanted_out, wanted_lse) = (map(np.asarray, x) for x in (found, wanted))
    assert error_ratio(out, wanted_out) < KERNEL["bfloat16"].forward
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(wanted_lse))
    seen = ~np.isneginf(lse)
    assert error_ratio(lse[seen], wanted_lse[seen]) < KERNEL["float32"].forward
    assert not np.any(out[~seen])


def test_codes_are_e5m2_numbers():
    """Of all bytes, in the order in which the kernel's queries have their channels."""
    codes_CX = jnp.arange(256, dtype=jnp.uint8).reshape(32, 8)

    def write(codes_ref, out_ref):
        out_ref[...] = load_codes(codes_ref[...]).astype(jnp.float32)

    shape = jax.ShapeDtypeStruct((64, 8), jnp.float32)
    found_HX = pl.pallas_call(write, out_shape=shape, interpret=True)(codes_CX) * CODES_UNIT
    codes_HX = unpack(codes_CX.T).T
    codes_HX = np.concatenate([codes_HX[0::2], codes_HX[1::2]])
    wanted_HX = np.array(LEVELS)[codes_HX & 7] * np.where(codes_HX & 8, -1, 1)
    np.testing.assert_array_equal(found_HX, wanted_HX)


def test_tiles_hold_every_query_head_once_beside_its_kv_head():
    for heads in [(0, 0, 2, 5), (3, 1, 0, 2, 0, 1, 2, 3, 0, 1), (0,) * 17, tuple(range(32))]:
        tiles, read = tiles_of(heads), sorted(set(heads))
        assert all(len(tile.queries) % 8 == 0 for tile in tiles)
        assert set(sum((tile.queries for tile in tiles), ())) == set(range(len(heads)))
        assert [kv for tile in tiles for kv in tile.kv_heads] == list(range(len(read)))
        for tile in tiles:
            own = [read[tile.kv_heads[owner]] for owner in tile.owners]
            assert own == [heads[query] for query in tile.queries]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(head_dim=32), r"the head dimension is 32; (64, 128, 256) are accepted"),
        (dict(named="int4"), "keys and values are stored as Int4 and Int4; the kernel reads"),
    ],
)
def test_what_it_cannot_take_is_told(changes, words):
    case = Case(name="refused", **changes)
    with pytest.raises(NotImplementedError) as refusal:
        jax.eval_shape(step(case, "tpu", True), *jax.eval_shape(lambda: arguments(case)))
    assert words in str(refusal.value)


def test_float32_queries_are_refused():
    case = Case(name="refused")
    q_BNH, *others = jax.eval_shape(functools.partial(arguments, case))
    q_BNH = jax.ShapeDtypeStruct(q_BNH.shape, jnp.float32)
    with pytest.raises(NotImplementedError, match="q is float32; bfloat16 is accepted"):
        jax.eval_shape(step(case, "tpu", True), q_BNH, *others)
