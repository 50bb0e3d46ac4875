"""Compares every op over ranks with the op on one device.

`python -m tests.hydrahead_jax.context.on_ranks [heavy]` prints how far outputs and gradients are
apart, as JSON: run -> result -> [largest difference in each row].
"""

import os

from tests import quick

os.environ["XLA_FLAGS"] = quick.flags(devices=8)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "16"  # threads; with fewer than devices, collectives wait for each other

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from hydrahead_jax.context.delta import context_gated_delta
from hydrahead_jax.context.halo import context_short_conv
from hydrahead_jax.context.order import from_order, to_order
from hydrahead_jax.context.ring import ring_attention
from hydrahead_jax.context.slots import context_native_hybrid
from hydrahead_jax.ops.short_conv import short_conv
from pallas_kernels import attention, gated_delta, native_hybrid_attention
from pallas_kernels.gated_delta.segments import state_runs
from tests.hydrahead_jax.context import cases
from tests.hydrahead_jax.context.cases import Run

TOKENS, ROWS, SAME = PartitionSpec("data", "context"), PartitionSpec("data"), PartitionSpec()
STARTS_BT = jnp.diff(state_runs(jnp.asarray(cases.IDS_BT)), axis=1, prepend=0) > 0


def attention_on_ranks(q, k, v, ids_BT, starts_BT, **where):
    return (
        ring_attention(
            q, k, v, kv_head_of_query=cases.KV_HEAD_OF_QUERY, segment_ids_BT=ids_BT, **where
        ),
    )


def delta_on_ranks(*arrays, **where):
    *tokens, state_BNHP, ids_BT, starts_BT = arrays
    return context_gated_delta(
        *tokens, segment_ids_BT=ids_BT, starts_BT=starts_BT, initial_state_BNHP=state_BNHP, **where
    )


def slots_on_ranks(*arrays, sinks=True, window=cases.WINDOW, **where):
    *inputs, q_rotated, k_rotated, ids_BT, starts_BT = arrays
    found = context_native_hybrid(
        *inputs,
        window=window,
        rotated=(q_rotated, k_rotated),
        kv_head_of_query=cases.KV_HEAD_OF_QUERY,
        segment_ids_BT=ids_BT,
        starts_BT=starts_BT,
        sinks=sinks,
        **where,
    )
    return _finite(found)


def conv_on_ranks(x, weight, tail, ids_BT, starts_BT, tail_ids_BW, **where):
    return (context_short_conv(x, weight, tail, ids_BT, tail_ids_BW, **where),)


def attention_whole(q, k, v):
    return (
        attention(
            q,
            k,
            v,
            kv_head_of_query=cases.KV_HEAD_OF_QUERY,
            segment_ids_BT=cases.IDS_BT,
            implementation="reference",
        ),
    )


def null_keys_on_ranks(*arrays, **where):
    return attention_on_ranks(*arrays, null_keys=cases.SLOTS, **where)


def null_keys_whole(q, k, v):
    arguments = {"kv_head_of_query": cases.KV_HEAD_OF_QUERY, "segment_ids_BT": cases.IDS_BT}
    found = attention(q, k, v, **arguments, return_lse=True, implementation="reference")
    out_BTNH, lse_BTN = found
    return (out_BTNH / (1 + cases.SLOTS * jnp.exp(-lse_BTN))[..., None],)


def delta_whole(*arrays):
    *tokens, state_BNHP = arrays
    return gated_delta(
        *tokens,
        initial_state_BNHP=state_BNHP,
        segment_ids_BT=jnp.asarray(cases.IDS_BT),
        implementation="reference",
    )


def slots_whole(*arrays, sinks=True, window=cases.WINDOW):
    *inputs, q_rotated, k_rotated = arrays
    found = native_hybrid_attention(
        *inputs,
        window=window,
        rotated=(q_rotated, k_rotated),
        kv_head_of_query=cases.KV_HEAD_OF_QUERY,
        segment_ids_BT=jnp.asarray(cases.IDS_BT),
        sinks=sinks,
    )
    return _finite((found.out_BTNH, found.slots_lse_BTN, found.window_lse_BTN))


def _finite(results):
    """Replaces the log-sum-exp of queries that see nothing by one that can be subtracted."""
    return tuple(jnp.where(x > -jnp.inf, x, 999.0) for x in results)


def conv_whole(x, weight, tail):
    return (short_conv(x, weight, tail, cases.IDS_BT, cases.TAIL_IDS_BW),)


SLOTS = (slots_on_ranks, slots_whole, (TOKENS,) * 6, (TOKENS,) * 3, ())


def _changed(op, **options):
    return (*(functools.partial(function, **options) for function in op[:2]), *op[2:])


OPS = {  # op on ranks, op on one device, places of arguments and results, further arguments
    "attention": (attention_on_ranks, attention_whole, (TOKENS,) * 3, (TOKENS,), ()),
    "null keys": (null_keys_on_ranks, null_keys_whole, (TOKENS,) * 3, (TOKENS,), ()),
    "slots": SLOTS,
    "slots without sinks": _changed(SLOTS, sinks=False),
    "slots without window": _changed(SLOTS, window=0),
    "delta": (delta_on_ranks, delta_whole, (TOKENS,) * 5 + (ROWS,), (TOKENS, ROWS), ()),
    "conv": (conv_on_ranks, conv_whole, (TOKENS, SAME, ROWS), (TOKENS,), (cases.TAIL_IDS_BW,)),
}


def run_on_ranks(run: Run, *arrays):
    """Runs an op over ranks and returns its results in natural order."""
    local, _, places, result_places, others = OPS[run.op]
    sizes = (run.data, run.context)
    mesh = Mesh(np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), ("data", "context"))
    permute = functools.partial(to_order, ranks=run.context, order=run.order)
    ids = [permute(x) for x in (jnp.asarray(cases.IDS_BT), STARTS_BT)]
    arrays = [permute(x) if place == TOKENS else x for x, place in zip(arrays, places, strict=True)]
    mapped = jax.shard_map(
        functools.partial(local, axis="context", order=run.order),
        mesh=mesh,
        in_specs=(*places, TOKENS, TOKENS, *(ROWS for _ in others)),
        out_specs=result_places,
    )
    results = zip(mapped(*arrays, *ids, *others), result_places, strict=True)
    back = functools.partial(from_order, ranks=run.context, order=run.order)
    return tuple(back(x) if place == TOKENS else x for x, place in results)


def with_gradients(function, arrays) -> list[np.ndarray]:
    """Returns the results, and the gradients of all arguments by fixed random cotangents."""

    def both(arrays):
        results, pull = jax.vjp(function, *arrays)
        rng = np.random.default_rng(1)
        seeds = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in results]
        return *results, *pull(tuple(seeds))

    return [np.asarray(x, np.float64) for x in jax.jit(both)(tuple(arrays))]


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    inputs = cases.inputs()
    cast = lambda op, dtype: [jnp.asarray(x, dtype) for x in inputs[op]]
    runs = cases.HEAVY_RUNS if sys.argv[1:] == ["heavy"] else cases.RUNS
    ops = {run.op for run in runs}
    exact = {op: with_gradients(OPS[op][1], cast(op, "float64")) for op in ops}
    report = {}
    for run in runs:
        found = with_gradients(functools.partial(run_on_ranks, run), cast(run.op, run.dtype))
        names = [f"result {i}" for i in range(len(OPS[run.op][3]))]
        names += [f"gradient of {name}" for name in inputs[run.op]._fields]
        report[str(run)] = {
            name: [_apart(x, y) for x, y in zip(a, b, strict=True)]
            for name, a, b in zip(names, found, exact[run.op], strict=True)
        }
    print(json.dumps(report))


def _apart(found, exact) -> float:
    return float(np.max(np.abs(found - exact))) / max(1.0, float(np.max(np.abs(exact))))


if __name__ == "__main__":
    main()
