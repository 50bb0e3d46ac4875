"""Compares gradients by parts of the keys, from the full output and log-sum-exp, with float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention_gradients
from tests.pallas_kernels.attention.cases import Case, make_inputs, wide
from tests.pallas_kernels.attention.oracle import cotangents, float64_results
from tests.pallas_kernels.attention.suite import ATTENTION
from tests.pallas_kernels.kit.cases import in_dtype
from tests.tolerances import KERNEL, error_ratio

MIXED = Case(name="parts", length=40, keys=90, q_start=45, segments="mixed")
FULL = Case(name="parts, not causal", length=40, keys=90, causal=False, segments="strangers")
LARGE = Case(name="parts, one logit at 1e4", logits="one at 1e4")
CASES = [
    ("reference", MIXED),
    ("chunked", MIXED),
    ("chunked", FULL),
    ("tpu", wide(MIXED, 64)),
    ("gpu", in_dtype(wide(MIXED, 64), "bfloat16")),
]


def by_parts(name: str, case: Case, *, cut: int):
    """Returns exact results, and dq, dk and dv from two parts of the keys."""
    inputs, interpret = make_inputs(case), ATTENTION.implementations[name].is_kernel
    exact = float64_results(inputs, case, of_lse=0.0)
    dout_BTNH, dlse_BTN = cotangents(inputs)
    of_queries = jnp.asarray(exact.out, dout_BTNH.dtype), jnp.asarray(exact.lse, dlse_BTN.dtype)

    def part(keys: slice):
        ids = inputs.kv_segment_ids_BS
        return attention_gradients(
            inputs.q_BTNH,
            inputs.k_BSKH[:, keys],
            inputs.v_BSKH[:, keys],
            *of_queries,
            dout_BTNH,
            kv_head_of_query=case.kv_head_of_query,
            causal=case.causal,
            segment_ids_BT=inputs.segment_ids_BT,
            kv_segment_ids_BS=None if ids is None else ids[:, keys],
            q_start=case.q_start - keys.start,
            implementation=name,
            interpret=interpret,
        )

    (dq, *low), (more, *high) = jax.jit(lambda: [part(slice(0, cut)), part(slice(cut, case.S))])()
    dkv = (np.concatenate(pair, axis=1) for pair in zip(low, high, strict=True))
    return exact, dict(zip(("dq", "dk", "dv"), (dq + more, *dkv), strict=True))


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(*x, marks=ATTENTION.implementations[x[0]].marks) for x in CASES],
    ids=lambda x: getattr(x, "name", x),
)
def test_two_parts_of_the_keys_add_up(name, case):
    exact, found = by_parts(name, case, cut=64)
    errors = {x: error_ratio(found[x], getattr(exact, x)) for x in found}
    assert max(errors.values()) <= KERNEL[case.dtype].gradient, errors


def test_scores_of_1e4_cost_two_units_of_their_last_place():
    """The last place of such a score in float32 is 2^-10; `attention` has no such error."""
    exact, found = by_parts("chunked", LARGE, cut=64)
    errors = {x: error_ratio(found[x], getattr(exact, x)) for x in found}
    assert max(errors.values()) <= 2.5 * 2**-10, errors


def test_refuses_a_scale_that_is_not_positive():
    x = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(ValueError, match=r"scale=-1.0; .* need a positive one"):
        attention_gradients(x, x, x, x, x[..., 0], x, scale=-1.0)
