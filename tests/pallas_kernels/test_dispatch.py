"""Checks which implementation runs, and what callers see when none fits."""

import logging
import typing

import pytest

from pallas_kernels import gated_delta, gated_delta_step
from pallas_kernels.attention import api as attention_api
from pallas_kernels.attention import gradients
from pallas_kernels.dispatch import Op
from pallas_kernels.gated_delta import api as gated_delta_api
from pallas_kernels.slot_attention import api as slot_api
from tests.pallas_kernels.gated_delta.cases import Case, make_inputs


def refuses(*args, **kwargs):
    raise NotImplementedError("T must be even")


def make_op(**implementations) -> Op:
    op = Op("toy")
    for name, implementation in implementations.items():
        op.register(name, implementation)
    return op


def test_the_first_implementation_that_accepts_runs_and_is_logged_once(caplog):
    op = make_op(best=refuses, good=lambda x: x + 1, slow=lambda x: x + 2)
    with caplog.at_level(logging.INFO, logger="pallas_kernels.dispatch"):
        assert op(1) == op(1) == 2
    assert [record.message for record in caplog.records] == ["toy[()] runs as good"]


def test_a_named_implementation_is_never_replaced():
    op = make_op(best=refuses, good=lambda x: x)
    with pytest.raises(NotImplementedError, match=r"toy: best: T must be even$"):
        op(1, implementation="best")


def test_some_run_by_name_only():
    op = make_op(best=refuses)
    op.register("library", lambda x: x, by_name_only=True)
    assert op(1, implementation="library") == 1
    with pytest.raises(NotImplementedError, match=r"^toy: best: T must be even$"):
        op(1)


def test_names_are_tried_in_the_order_of_the_caller():
    op = make_op(best=lambda x: x, odd=refuses, slow=lambda x: x + 2)
    assert op(1, implementation=("odd", "slow", "best")) == 3
    assert op(1, implementation=["best", "slow"]) == 1
    with pytest.raises(NotImplementedError, match=r"^toy: odd: T must be even$"):
        op(1, implementation=["odd"])


@pytest.mark.parametrize("names", [("best", "fast"), ["fast"], ()])
def test_a_sequence_with_an_unknown_name_or_none_runs_nothing(names):
    op = make_op(best=lambda x: x)
    with pytest.raises(ValueError, match=r"^toy has no implementation .*, only best$"):
        op(1, implementation=names)


def test_blocks_run_only_where_their_type_is_known():
    op = make_op(whole=lambda x: "no blocks")
    op.register("cut", lambda x, blocks=None: blocks, blocks=int)
    assert op(1) == "no blocks" and op(1, implementation="cut") is None
    assert op(1, blocks=3) == 3
    refusals = (
        "toy: whole: blocks is str; it has none to choose; cut: blocks is str; int is accepted"
    )
    with pytest.raises(NotImplementedError, match=f"^{refusals}$"):
        op(1, blocks="large")


@pytest.mark.parametrize(
    ("op", "names"),
    [
        (attention_api._attention, attention_api.AttentionImplementation),
        (attention_api._attention_decode, attention_api.DecodeImplementation),
        (gradients._attention_gradients, gradients.GradientsImplementation),
        (gated_delta_api._gated_delta, gated_delta_api.GatedDeltaImplementation),
        (gated_delta_api._gated_delta_step, gated_delta_api.StepImplementation),
        (slot_api._slot_attention, slot_api.SlotAttentionImplementation),
        (slot_api._slot_attention_step, slot_api.SlotStepImplementation),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_annotations_name_what_is_registered(op, names):
    assert typing.get_args(names) == tuple(op.implementations)


def test_all_refusals_are_told():
    op = make_op(one=refuses, two=refuses)
    with pytest.raises(NotImplementedError, match=r"one: T must be even; two: T must be even"):
        op(1)


def test_an_unknown_name_is_told_with_the_known_ones():
    inputs = make_inputs(Case(name="dispatch", length=4))
    with pytest.raises(ValueError, match=r"no implementation 'fast', only .*chunked, reference"):
        gated_delta(*inputs[:5], implementation="fast")


def test_value_heads_must_be_a_multiple_of_key_heads():
    inputs = make_inputs(Case(name="groups", length=4, key_heads=3, value_heads=3))
    q, k, v, log_decay, beta = inputs[:5]
    two = (v[:, :, :2], log_decay[:, :, :2], beta[:, :, :2])
    with pytest.raises(ValueError, match="2 value heads are not a multiple of 3 key heads"):
        gated_delta(q, k, *two)
    with pytest.raises(ValueError, match="2 value heads are not a multiple of 3 key heads"):
        gated_delta_step(q[:, 0], k[:, 0], *(x[:, 0] for x in two), inputs.state_BNHP[:, :2])


def test_the_public_function_takes_a_sequence():
    inputs = make_inputs(Case(name="dispatch", length=4))[:5]
    expected = gated_delta(*inputs, implementation="reference")
    found = gated_delta(*inputs, implementation=("gpu", "reference"))
    assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()
