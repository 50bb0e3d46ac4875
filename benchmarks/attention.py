"""Benchmarks softmax attention: ours, and the libraries' where they are installed.

Each is checked with gradients through what it can differentiate: the libraries' log-sum-exp has
none.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contestant import Contestant, installed
from pallas_kernels import attention
from pallas_kernels.attention import api
from pallas_kernels.attention.shapes import Shape, irregular_shapes
from pallas_kernels.attention.shapes import shapes as regular_shapes
from pallas_kernels.report import tokamax_splash
from pallas_kernels.report.attention import flops, inputs, least_bytes
from tests.pallas_kernels.attention.cases import (
    HEADS,
    LOGITS,
    SEGMENTS,
    STARTS,
    VISIBILITY,
    Case,
    make_inputs,
)
from tests.pallas_kernels.attention.oracle import Results, cotangents, float64_results
from tests.pallas_kernels.attention.suite import ATTENTION

__all__ = ["contestants", "flops", "hostile_cases", "least_bytes", "shapes", "too_far"]
LINEAR = False  # time is quadratic in the length
LENGTH = 256  # every library takes this length
too_far = functools.partial(ATTENTION.too_far, dtype="bfloat16")


def shapes(tokens, heads, groups, head_size) -> list[Shape]:
    """Returns shapes with regular heads, and with 4 irregular ones of 16."""
    regular = regular_shapes(tokens, heads, groups, head_size=head_size)
    return regular + irregular_shapes(tokens, head_size=head_size)


def hostile_cases(head_size: int) -> list[Case]:
    """Returns hostile cases in bf16 at the head size that is timed."""
    regular = dict(kv_heads=2, kv_head_of_query=(0, 0, 1, 1), length=LENGTH, keys=None)
    common = dict(batch=1, head_dim=head_size, dtype="bfloat16")
    logits = [dataclasses.replace(case, segments="none") for case in LOGITS]
    forms = [*SEGMENTS, *logits, *(case for case in VISIBILITY if case.keys is None), STARTS[0]]
    same_map = [dataclasses.replace(case, **regular, **common) for case in forms]
    maps = [dataclasses.replace(case, length=LENGTH, **common) for case in HEADS]
    return [*same_map, *maps]


def contestants(names: list[str] | None = None) -> list[Contestant]:
    """Returns those named; without names, all that this machine has a device and packages for."""
    platform = jax.default_backend()
    ours_here = [
        name
        for name in api._attention.implementations
        if name not in PEERS and (name != "reference" or platform == "cpu")
    ]
    theirs = {"gpu": ["cudnn", "cudnn, repeated KV"], "tpu": ["splash"]}.get(platform, [])
    if installed("tokamax"):
        theirs += {"gpu": ["tokamax"], "tpu": ["tokamax splash"]}.get(platform, [])
    return [PEERS[name]() if name in PEERS else ours(name) for name in names or ours_here + theirs]


def ours(name: str) -> Contestant:
    return _contestant(name, functools.partial(_named, name), of_lse=1.0)


def splash() -> Contestant:
    """Describes JAX's splash. It rounds scale * q to bf16, so it does not promise large logits."""
    takes = lambda case: case.logits == "random"
    run = functools.partial(_named, "splash")
    return _contestant("splash", run, takes=takes, may_refuse=True, peer=True)


def cudnn() -> Contestant:
    return _contestant("cudnn", functools.partial(_named, "cudnn"), may_refuse=True, peer=True)


def cudnn_repeated() -> Contestant:
    """Describes cuDNN with a copy of the KV head for each query head, as irregular maps need."""
    return _contestant("cudnn, repeated KV", _repeated, may_refuse=True, peer=True)


def tokamax() -> Contestant:
    """Describes tokamax's Mosaic GPU kernels, which return the output only."""
    takes = lambda case: _plain(case) and _regular(case)
    return _contestant("tokamax", _tokamax, takes=takes, may_refuse=True, peer=True)


def tokamax_tpu() -> Contestant:
    """Describes tokamax's splash, which returns the output only and rounds as splash does."""
    takes = lambda case: _plain(case) and case.logits == "random"
    return _contestant("tokamax splash", _tokamax_splash, takes=takes, may_refuse=True, peer=True)


PEERS = {
    "splash": splash,
    "cudnn": cudnn,
    "cudnn, repeated KV": cudnn_repeated,
    "tokamax": tokamax,
    "tokamax splash": tokamax_tpu,
}


def _plain(case: Case) -> bool:
    """Returns whether the case is causal attention of one sequence to itself."""
    return case.causal and case.segments in ("none", "one") and not case.q_start


def _regular(case: Case) -> bool:
    group = len(case.kv_head_of_query) // case.kv_heads
    return case.kv_head_of_query == tuple(n // max(1, group) for n in range(group * case.kv_heads))


def _contestant(name: str, run, *, of_lse: float = 0.0, **settings) -> Contestant:
    """Makes a contestant of `run(q, k, v, ids, key ids, case) -> (out, log-sum-exp or None)`.

    A Shape may stand for the case.
    """

    def results(case: Case) -> Results:
        given = make_inputs(case)

        @jax.jit
        def found(given, cotangent):
            call = lambda *x: run(*x, *given[4:], case)
            if of_lse:
                (out, lse), pull = jax.vjp(call, *given[:3])
                return out, lse, pull(cotangent)
            out, pull, lse = jax.vjp(call, *given[:3], has_aux=True)
            return out, lse, pull(cotangent[0])

        out, lse, gradients = found(given, cotangents(given))
        lse = _exact(case, of_lse).lse if lse is None else lse
        return Results(*map(np.asarray, (out, lse, *gradients)))

    def calls(shape: Shape):
        *arrays, cotangent = inputs(shape, "forward+backward")
        both = lambda *x: run(*x, None, None, shape)
        only_out = lambda *x: both(*x)[0]
        forward = jax.jit(both if of_lse else only_out)
        backward = jax.jit(lambda pull, out: pull(out))
        _, pull = jax.jit(lambda *x: jax.vjp(only_out, *x))(*arrays)
        return lambda: forward(*arrays), lambda: backward(pull, cotangent)

    exact = functools.partial(_exact, of_lse=of_lse)
    return Contestant(name=name, results=results, exact=exact, calls=calls, **settings)


def _exact(case: Case, of_lse: float) -> Results:
    return float64_results(make_inputs(case), case, of_lse=of_lse)


def _named(name, q, k, v, ids, key_ids, case, heads=None):
    out, lse = attention(
        q,
        k,
        v,
        kv_head_of_query=heads or case.kv_head_of_query,
        causal=getattr(case, "causal", True),
        window=case.window,
        segment_ids_BT=ids,
        kv_segment_ids_BS=key_ids,
        q_start=getattr(case, "q_start", 0),
        scale=getattr(case, "scale", None),
        return_lse=True,
        implementation=name,
    )
    return out, lse


def _repeated(q, k, v, ids, key_ids, case):
    heads = jnp.array(case.kv_head_of_query)
    one_to_one = tuple(range(len(case.kv_head_of_query)))
    return _named("cudnn", q, k[:, :, heads], v[:, :, heads], ids, key_ids, case, one_to_one)


def _tokamax(q, k, v, ids, key_ids, case):
    import tokamax

    if case.window is not None or not _regular(case):
        raise NotImplementedError("a window or an irregular map of heads")
    scale = getattr(case, "scale", None)
    settings = {} if scale is None else {"scale": scale}
    out = tokamax.dot_product_attention(
        q, k, v, is_causal=True, implementation="mosaic", **settings
    )
    return out, None


def _tokamax_splash(q, k, v, ids, key_ids, case):
    T, H = q.shape[1], q.shape[-1]
    shape = Shape(
        tokens=T,
        kv_head_of_query=case.kv_head_of_query,
        kv_heads=case.kv_heads,
        head_size=H,
        window=case.window,
    )
    scale = getattr(case, "scale", None)
    wanted = 1.0 if scale is None else scale * H**0.5
    return tokamax_splash.attend(shape, q * wanted, k, v), None
