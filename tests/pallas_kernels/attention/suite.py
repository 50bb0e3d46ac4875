"""Describes softmax attention to the common tests: implementations, cases and bounds."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from pallas_kernels import attention
from tests.pallas_kernels.attention.cases import (
    CASES,
    FORMS,
    Case,
    Inputs,
    make_inputs,
    wide,
    wide_cases,
)
from tests.pallas_kernels.attention.oracle import Results, cotangents, float64_results
from tests.pallas_kernels.kit.cases import both, in_dtype
from tests.pallas_kernels.kit.implementation import Implementation, hopper_kernels, tpu_kernels
from tests.pallas_kernels.kit.suite import Sharded, Suite

SHARD_HEADS = (0, 0, 1)  # of the KV heads of one shard
_TPU_SIZES = tuple(
    in_dtype(wide(Case(name=f"T={length}, H={size}", length=length), size), "bfloat16")
    for length, size in ((1, 128), (127, 128), (129, 256), (1000, 128))
)
IMPLEMENTATIONS = (
    Implementation(name="chunked", cases=(*CASES, *both(FORMS)[len(FORMS) :])),
    Implementation(name="reference", cases=(*CASES, in_dtype(FORMS[0], "bfloat16"))),
    tpu_kernels(cases=(*both(wide(case, 64) for case in FORMS), *_TPU_SIZES)),
    hopper_kernels(head_dims=(64, 128, 256), own_tests=True),
)


def call(
    name: str, interpret, heads, causal=True, window=None, scale=None, start=None, **settings
) -> Callable:
    """Returns (q, k, v, q_start, segment ids, key segment ids) -> (out, lse)."""

    def run(q, k, v, q_start, segment_ids, kv_segment_ids):
        return attention(
            q,
            k,
            v,
            kv_head_of_query=heads,
            causal=causal,
            window=window,
            segment_ids_BT=segment_ids,
            kv_segment_ids_BS=kv_segment_ids,
            q_start=q_start if start is None else start,
            scale=scale,
            return_lse=True,
            implementation=name,
            interpret=interpret,
            **settings,
        )

    return run


def static(case: Case) -> tuple:
    start = None if case.traced else case.q_start
    return case.kv_head_of_query, case.causal, case.window, case.scale, start


def run_case(name: str, case: Case, interpret=False, **settings) -> Callable:
    return call(name, interpret, *static(case), **settings)


def variants(inputs: Inputs) -> list[Inputs]:
    """Returns other queries, positions and segments over the same keys and values."""
    ids_BT = inputs.segment_ids_BT
    return [
        inputs._replace(
            q_BTNH=inputs.q_BTNH * jnp.asarray(scale, inputs.q_BTNH.dtype),
            q_start=jnp.int32(start),
            segment_ids_BT=ids,
        )
        for scale, start, ids in ((1.0, 45, ids_BT), (0.5, -30, ids_BT), (2.0, 200, 1 + 0 * ids_BT))
    ]


def sharded(implementation: Implementation, interpret, shards: int) -> Sharded:
    """Splits KV heads with their query heads; all devices have the same q_start."""
    case = Case(
        name="sharded",
        batch=4,
        length=40,
        keys=60,
        kv_heads=2 * shards,
        kv_head_of_query=tuple(2 * i + head for i in range(shards) for head in SHARD_HEADS),
        head_dim=(implementation.head_dims or (16,))[0],
        q_start=20,
        segments="packed",
        dtype=implementation.dtypes[0],
    )
    run = functools.partial(call, implementation.name, interpret)
    heads, rows = PartitionSpec("row", None, "head"), PartitionSpec("row")
    return Sharded(
        inputs=make_inputs(case),
        given=6,
        of_shard=run(SHARD_HEADS),
        complete=run(case.kv_head_of_query),
        in_specs=(heads, heads, heads, PartitionSpec(), rows, rows),
        out_specs=(heads, heads),
    )


ATTENTION = Suite(
    name="attention",
    implementations={x.name: x for x in IMPLEMENTATIONS},
    call=call,
    static=static,
    make_inputs=make_inputs,
    cotangents=cotangents,
    exact=float64_results,
    results=Results,
    limits=dict.fromkeys(("out", "lse"), "forward") | dict.fromkeys(("dq", "dk", "dv"), "gradient"),
    columns={"forward": ("out",), "lse": ("lse",), "gradients": ("dq", "dk", "dv")},
    zeros={"out": "out", "dq": "out", "dk": "dk", "dv": "dv"},
    ids=dict(q_BTNH="segment_ids_BT", k_BSKH="kv_segment_ids_BS", v_BSKH="kv_segment_ids_BS"),
    dirt=30.0,
    at_padding={"out": 0.0, "lse": -np.inf},
    wide=wide,
    wide_cases=wide_cases,
    forms=FORMS,
    smoke="T=1, H=128",
    transformed=Case(name="transformed", length=70, keys=160, segments="mixed", traced=True),
    variants=variants,
    sharded=sharded,
    vma_unchecked=("tpu",),
)
