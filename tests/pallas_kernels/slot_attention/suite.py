"""Describes slot attention to the common tests: implementations, cases and bounds."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pallas_kernels import slot_attention
from pallas_kernels.slot_attention.state import SlotState
from pallas_kernels.slot_attention.tpu.blocks import TpuBlocks
from tests.pallas_kernels.kit.cases import both, in_dtype
from tests.pallas_kernels.kit.implementation import Implementation, hopper_kernels, tpu_kernels
from tests.pallas_kernels.kit.suite import Sharded, Suite
from tests.pallas_kernels.slot_attention.cases import (
    CASES,
    FORMS,
    Case,
    Inputs,
    make_inputs,
    wide,
    wide_cases,
)
from tests.pallas_kernels.slot_attention.oracle import Results, cotangents, float64_results

# In float32 one program takes two KV heads and all chunks; in bfloat16 each has one of its own, and
# the slots go from one grid step to the next.
TPU_CASES = tuple(wide(case, 64) for case in (FORMS[0], *FORMS[-6:]))
STEP_BY_STEP = dict(dtype="bfloat16", blocks=TpuBlocks(kv_heads=1))

IMPLEMENTATIONS = (
    Implementation(name="chunked", cases=(*CASES, *both(FORMS)[len(FORMS) :])),
    Implementation(name="reference", cases=(*CASES, in_dtype(FORMS[0], "bfloat16"))),
    tpu_kernels(cases=(*TPU_CASES, *(dataclasses.replace(x, **STEP_BY_STEP) for x in TPU_CASES))),
    hopper_kernels(head_dims=(64, 128), is_heavy=True),
)


def state_of(inputs: Inputs) -> SlotState:
    nothing_B = jnp.zeros(len(inputs.q_BTNH), bool)
    return SlotState(*inputs[4:6], nothing_B, *inputs[6:10])


def call(name: str, interpret, heads, shift: int, sinks: bool, blocks=None) -> Callable:
    """Returns a function of the inputs -> (out, lse, key slots, value slots)."""

    def run(*inputs):
        inputs = Inputs(*inputs)
        out_BTNH, lse_BTN, state = slot_attention(
            *inputs[:4],
            shift=shift,
            kv_head_of_query=heads,
            state=state_of(inputs),
            segment_ids_BT=inputs.segment_ids_BT,
            sinks=sinks,
            implementation=name,
            blocks=blocks,
            interpret=interpret,
        )
        return out_BTNH, lse_BTN, state.k_slots_BKMH, state.v_slots_BKMH

    return run


def static(case: Case) -> tuple:
    return case.heads, case.shift, case.sinks, case.blocks


def variants(inputs: Inputs) -> list[Inputs]:
    return [inputs, inputs._replace(q_BTNH=inputs.q_BTNH * 0.5)]


def sharded(implementation: Implementation, interpret, shards: int) -> Sharded:
    """Splits rows and KV heads, with their slots and their query heads."""
    size = (implementation.head_dims or (16,))[0]
    sizes = dict(length=20, batch=4, heads=(0, 1), head_dim=size)
    case = Case(name="sharded", **sizes, dtype=implementation.dtypes[0])
    inputs = make_inputs(case)
    heads, slots = PartitionSpec("row", None, "head"), PartitionSpec("row", "head")
    run = lambda heads: call(implementation.name, interpret, heads, case.shift, case.sinks)
    rows = PartitionSpec("row")
    return Sharded(
        inputs=inputs,
        given=len(inputs),
        of_shard=run(case.heads[: len(case.heads) // shards]),
        complete=run(case.heads),
        in_specs=(*[heads] * 4, slots, slots, *[heads] * 3, rows, rows),
        out_specs=(heads, heads, slots, slots),
    )


SLOT_ATTENTION = Suite(
    name="slot_attention",
    implementations={x.name: x for x in IMPLEMENTATIONS},
    call=call,
    static=static,
    make_inputs=make_inputs,
    cotangents=cotangents,
    exact=float64_results,
    results=Results,
    limits=dict.fromkeys(Results._fields[:4], "forward")
    | dict.fromkeys(Results._fields[4:], "gradient")
    | dict.fromkeys(("dlog_forget", "dlog_forget_waiting"), "gate_gradient"),
    columns={
        "forward": ("out", "k_slots", "v_slots"),
        "lse": ("lse",),
        "gradients": ("dq", "dk", "dv", "dk_slots", "dv_slots", "dk_waiting", "dv_waiting"),
        "gates": ("dlog_forget", "dlog_forget_waiting"),
    },
    ids=dict.fromkeys(Inputs._fields[:4], "segment_ids_BT"),
    dirt=float("nan"),
    at_padding={"out": 0.0, "lse": -jnp.inf},
    first_only=("k_slots_BKMH", "v_slots_BKMH", "log_forget_waiting_BWKM"),
    last_only=("k_slots", "v_slots"),
    wide=wide,
    wide_cases=wide_cases,
    forms=FORMS,
    smoke="",
    transformed=Case(name="transformed", length=40, heads=(0, 0), kv_heads=1),
    variants=variants,
    sharded=sharded,
)
