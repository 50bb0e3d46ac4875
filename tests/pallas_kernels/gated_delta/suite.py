"""Describes the gated delta rule to the common tests: implementations, cases and bounds."""

import dataclasses
from collections.abc import Callable

from jax.sharding import PartitionSpec

from pallas_kernels import gated_delta
from tests.pallas_kernels.gated_delta.cases import (
    CASES,
    FORMS,
    HEADS,
    LENGTHS,
    Case,
    Inputs,
    make_inputs,
    wide,
    wide_cases,
)
from tests.pallas_kernels.gated_delta.oracle import Results, cotangents, float64_results
from tests.pallas_kernels.kit.cases import both
from tests.pallas_kernels.kit.implementation import Implementation, hopper_kernels, tpu_kernels
from tests.pallas_kernels.kit.suite import Sharded, Suite

_ONE_HEAD = dataclasses.replace(
    wide(Case(name="1 head, H=128", length=65), 128), value_heads=1, dtype="bfloat16"
)
IMPLEMENTATIONS = (
    Implementation(name="chunked", cases=(*CASES, *both(FORMS)[len(FORMS) :])),
    Implementation(name="reference", cases=(LENGTHS[0], HEADS[1], *both(FORMS))),
    tpu_kernels(
        cases=(*both(wide(case, 64) for case in FORMS), _ONE_HEAD),
        padding_trace=1e-25,  # they divide by the write strength and take 0 as 1e-30
    ),
    hopper_kernels(head_dims=(128, 64)),
)
LONG_DRAWS = 4
LONG = {
    f"{keys} keys, beta {beta or 'random'}": [
        Case(name=f"{keys} {i}", keys=keys, beta=beta, length=1000, key_dim=64, log_decay=0.0)
        for i in range(LONG_DRAWS)
    ]
    for keys, beta in (
        ("random", None),
        ("identical", 1.0),
        ("identical", 2.0),
        ("identical, rounded", 2.0),
        ("cosine 0.9", 0.9),
        ("cosine 0.9", 2.0),
    )
}


def call(name: str, interpret, **settings) -> Callable:
    """Returns (q, k, v, log decay, beta, state, segment ids) -> (out, state)."""

    def run(q, k, v, log_decay, beta, state=None, segment_ids=None):
        return gated_delta(
            q,
            k,
            v,
            log_decay,
            beta,
            initial_state_BNHP=state,
            segment_ids_BT=segment_ids,
            implementation=name,
            interpret=interpret,
            **settings,
        )

    return run


def variants(inputs: Inputs) -> list[Inputs]:
    return [inputs, inputs._replace(q_BTKH=inputs.q_BTKH * 0.5)]


def sharded(implementation: Implementation, interpret, shards: int) -> Sharded:
    """Splits all heads; there is no initial state, which then varies over no device."""
    size = (implementation.head_dims or (16,))[0]
    case = Case(
        name="sharded",
        length=20,
        batch=4,
        key_dim=size,
        value_dim=size,
        value_heads=2,
        dtype=implementation.dtypes[0],
    )
    run, heads = call(implementation.name, interpret), PartitionSpec("row", None, "head")
    return Sharded(
        inputs=make_inputs(case),
        given=5,
        of_shard=run,
        complete=run,
        in_specs=heads,
        out_specs=(heads, PartitionSpec("row", "head")),
    )


GATED_DELTA = Suite(
    name="gated_delta",
    implementations={x.name: x for x in IMPLEMENTATIONS},
    call=call,
    make_inputs=make_inputs,
    cotangents=cotangents,
    exact=lambda inputs, case: float64_results(inputs),
    results=Results,
    limits=dict.fromkeys(("out", "state"), "forward")
    | dict.fromkeys(("dq", "dk", "dv"), "gradient")
    | dict.fromkeys(("dlog_decay", "dbeta"), "gate_gradient")
    | {"dstate": "gradient"},
    columns={
        "forward": ("out", "state"),
        "gradients": ("dq", "dk", "dv", "dstate"),
        "gates": ("dlog_decay", "dbeta"),
    },
    angles=("dlog_decay", "dbeta"),
    ids=dict.fromkeys(Inputs._fields[:5], "segment_ids_BT"),
    dirt=3.0,
    at_padding={"out": 0.0},
    first_only=("state_BNHP",),
    last_only=("state",),
    wide=wide,
    wide_cases=wide_cases,
    forms=FORMS,
    smoke="1 head, H=128",
    transformed=Case(name="transformed", length=40),
    variants=variants,
    sharded=sharded,
    sizes="H = P",
    draws=LONG,
    draws_title=f"T = 1000, H = 64, P = 8, no decay, worst of {LONG_DRAWS} draws",
)
