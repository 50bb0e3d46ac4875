"""Compares every implementation of the decode step of attention with float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import attention_decode
from pallas_kernels.attention.tpu.decode_blocks import TpuDecodeBlocks
from tests.pallas_kernels.attention.cases import Case, Inputs, make_inputs
from tests.pallas_kernels.attention.oracle import float64_results
from tests.pallas_kernels.attention.suite import ATTENTION
from tests.pallas_kernels.kit.cases import both, in_dtype
from tests.pallas_kernels.kit.suite import outputs_and_gradients

LENGTHS = (300, 129, 0, 1)  # one for each row
STEP = dict(length=1, keys=300, batch=len(LENGTHS))
CASES = [
    Case(name="decode", **STEP),
    Case(name="decode, window 64", window=64, **STEP),
    Case(name="decode, window 1", window=1, **STEP),
    Case(name="decode, mixed", segments="mixed", **STEP),
    Case(name="decode, strangers", segments="strangers", **STEP),
    Case(name="decode (0, 0, 0)", kv_heads=1, kv_head_of_query=(0, 0, 0), **STEP),
    Case(name="decode (0, 2, 2, 3)", kv_heads=4, kv_head_of_query=(0, 2, 2, 3), **STEP),
    Case(name="decode (2, 0, 2)", kv_heads=3, kv_head_of_query=(2, 0, 2), **STEP),
    Case(name="decode near -1e4", logits="all near -1e4", scale=0.125, **STEP),
    Case(name="decode at 1e4", logits="one at 1e4", **STEP),
    Case(name="decode, scale -0.3", scale=-0.3, **STEP),
]
HEAD_DIM = {"chunked": 16, "reference": 16, "tpu": 128}  # "tpu" reads other sizes otherwise
ON_TPU = {"decode, window 64", "decode, mixed", "decode (2, 0, 2)", "decode near -1e4"}
interpreter = pytest.mark.interpreter("tpu")
EVERY = [
    *((name, case) for name in ("chunked", "reference") for case in both(CASES)),
    *(pytest.param("tpu", case, marks=interpreter) for case in CASES if case.name in ON_TPU),
    *(("tpu", in_dtype(case, "bfloat16")) for case in CASES if "(0, 2, 2, 3)" in case.name),
]
FORMS = [("rows", 1, 64), ("rows", 2, None), ("heads", 2, 64), ("columns", 1, None)]
names = pytest.mark.parametrize(
    "name", ["chunked", "reference", pytest.param("tpu", marks=interpreter)]
)


def step_inputs(case: Case) -> Inputs:
    """Makes the inputs of a decode step.

    Here q_start is the position of each row's query, whose segment is that of the key there.
    """
    lengths_B = np.array(LENGTHS)
    inputs = make_inputs(case)._replace(q_start=jnp.asarray(lengths_B - 1, jnp.int32))
    if case.segments in ("none", "strangers"):
        return inputs
    last_B1 = np.maximum(lengths_B - 1, 0)[:, None]
    ids_B1 = np.take_along_axis(np.asarray(inputs.kv_segment_ids_BS), last_B1, axis=1)
    return inputs._replace(segment_ids_BT=jnp.asarray(ids_B1))


def decode(name: str, case: Case, interpret, **settings):
    """Returns a step with the arguments of `attention`: (q, k, v, q_start, *ids) -> (out, lse)."""

    def run(q, k, v, q_start, segment_ids, kv_segment_ids):
        out, lse = attention_decode(
            q[:, 0],
            k,
            v,
            q_start + 1,
            kv_head_of_query=case.kv_head_of_query,
            window=case.window,
            segment_ids_B=None if segment_ids is None else segment_ids[:, 0],
            kv_segment_ids_BS=kv_segment_ids,
            scale=case.scale,
            return_lse=True,
            implementation=name,
            interpret=interpret,
            **settings,
        )
        return out[:, None], lse[:, None]

    return run


def sized(name: str, case: Case) -> Case:
    return dataclasses.replace(case, head_dim=HEAD_DIM[name])


def races(name: str):
    return pltpu.InterpretParams(detect_races=True) if name == "tpu" else False


@pytest.mark.parametrize(
    ("name", "case"), EVERY, ids=lambda x: x if isinstance(x, str) else f"{x.name}, {x.dtype}"
)
def test_results_and_gradients_equal_float64(name, case):
    case = sized(name, case)
    inputs, run = step_inputs(case), decode(name, case, races(name))
    found = ATTENTION.with_gradients(run)(inputs)
    ATTENTION.assert_results(found, float64_results(inputs, case), case.dtype)
    assert found.out.dtype == jnp.dtype(case.dtype) and found.lse.dtype == np.float32


@interpreter
@pytest.mark.parametrize(("form", "splits", "window"), FORMS)
def test_every_form_of_the_cache_and_split_on_tpu(form, splits, window):
    """There are three blocks, the last of them partly filled, and rows that need fewer or none."""
    blocks = TpuDecodeBlocks(keys=128, form=form, splits=splits)
    case = Case(name="forms", segments="mixed", window=window, head_dim=128, **STEP)
    if form == "columns":
        case = dataclasses.replace(case, head_dim=64)
    inputs, run = step_inputs(case), decode("tpu", case, races("tpu"), blocks=blocks)
    exact = float64_results(inputs, case)
    out, lse = map(np.asarray, jax.jit(run)(*inputs))
    ATTENTION.assert_results(exact._replace(out=out, lse=lse), exact, "float32")


@names
def test_vmap_changes_nothing(name):
    """The map goes over queries and lengths; the cache is shared."""
    case = sized(name, Case(name="vmapped", segments="packed", window=100, **STEP))
    inputs, run = step_inputs(case), decode(name, case, name == "tpu")
    queries = inputs.q_BTNH * jnp.array([1.0, 0.5])[:, None, None, None, None]
    starts = jnp.stack([inputs.q_start, inputs.q_start // 2])
    cotangents = ATTENTION.cotangents(inputs)

    def of_one(q, start):
        one = inputs._replace(q_BTNH=q, q_start=start)
        return outputs_and_gradients(run, 3, one, cotangents)

    found = jax.jit(jax.vmap(of_one))(queries, starts)
    for i in range(2):
        one = inputs._replace(q_BTNH=queries[i], q_start=starts[i])
        actual = ATTENTION.results(*(np.asarray(x[i]) for x in found))
        ATTENTION.assert_results(actual, float64_results(one, case), case.dtype)


@names
def test_what_lies_beyond_the_length_does_not_matter(name):
    case = sized(name, CASES[0])
    inputs, run = step_inputs(case), jax.jit(decode(name, case, name == "tpu"))
    beyond_BS = np.arange(case.S) > np.asarray(inputs.q_start)[:, None]
    dirty = [jnp.where(beyond_BS[..., None, None], 30.0, x) for x in inputs[1:3]]
    for clean, other in zip(run(*inputs), run(inputs.q_BTNH, *dirty, *inputs[3:]), strict=True):
        np.testing.assert_array_equal(clean, other)


@pytest.mark.parametrize(
    ("size", "dtype", "message"),
    [
        (48, "float32", r"the head dimension is 48; \(64, 128, 256\) are accepted"),
        (64, "float16", "q, k and v are float16; all bfloat16 or all float32 are accepted"),
    ],
)
def test_what_the_tpu_kernel_cannot_take_is_told(size, dtype, message):
    case = Case(name="refused", head_dim=size, dtype=dtype, **STEP)
    with pytest.raises(NotImplementedError, match=message):
        decode("tpu", case, True)(*step_inputs(case))


def test_without_a_tpu_it_says_so():
    with pytest.raises(NotImplementedError, match="the device is cpu; the kernels run on TPU"):
        decode("tpu", CASES[0], False)(*step_inputs(CASES[0]))
