"""Checks the adapters over JAX's own kernels: what they compute, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention
from pallas_kernels.attention import cudnn, splash
from pallas_kernels.target import Target
from tests.pallas_kernels.attention.cases import Case, make_inputs
from tests.pallas_kernels.attention.oracle import Results, cotangents, float64_results
from tests.pallas_kernels.attention.suite import ATTENTION, run_case

BASE = dict(batch=1, kv_heads=1, kv_head_of_query=(0, 0), head_dim=64, dtype="bfloat16")
SPLASH = [
    Case(name="splash, causal", length=256, **BASE),
    Case(name="splash, in the middle", length=128, keys=256, q_start=64, **BASE),
    Case(name="splash, window", length=256, window=50, scale=-0.1, **BASE),
    Case(name="splash, not causal", length=128, keys=256, causal=False, **BASE),
    Case(name="splash, some see nothing", length=256, keys=128, q_start=-130, **BASE),
    Case(name="splash, mixed", length=256, segments="mixed", **{**BASE, "batch": 2}),
    Case(name="splash, strangers", length=256, segments="strangers", **BASE),
]
CUDNN = [
    Case(name="cudnn, causal", length=40, **BASE),
    Case(name="cudnn, window", length=40, window=7, scale=0.3, **BASE),
    Case(name="cudnn, not causal", length=24, keys=40, causal=False, **BASE),
]


def results(name: str, case: Case, interpret=False) -> Results:
    """Returns results with the gradients of <out, cotangent> alone: libraries have no other."""
    inputs = make_inputs(case)
    run = jax.jit(lambda *x: run_case(name, case, interpret)(*x, *inputs[3:]))
    out, pull, lse = jax.vjp(run, *inputs[:3], has_aux=True)
    return Results(*map(np.asarray, (out, lse, *jax.jit(pull)(cotangents(inputs)[0]))))


def assert_right(actual: Results, case: Case) -> None:
    ATTENTION.assert_results(actual, float64_results(make_inputs(case), case, of_lse=0), case.dtype)


@pytest.mark.parametrize("case", SPLASH, ids=lambda case: case.name)
def test_splash(case):
    assert_right(results("splash", case, interpret=True), case)


def test_splash_skips_whole_blocks_of_rows_and_keys(monkeypatch):
    monkeypatch.setattr(splash, "_divisor", lambda length, largest: 128)
    case = Case(name="splash, blocks", length=384, keys=256, q_start=-130, window=140, **BASE)
    assert_right(results("splash", case, interpret=True), case)


@pytest.fixture
def a_gpu(monkeypatch):
    """Replaces cuDNN, which needs the device, by the XLA form of the same function."""
    stand_in = lambda *x, implementation, **kwargs: xla(*x, implementation="xla", **kwargs)
    xla = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(cudnn, "target", lambda q: Target("gpu", "NVIDIA H200"))


@pytest.mark.parametrize("case", CUDNN, ids=lambda case: case.name)
def test_cudnn_is_called_as_it_wants(a_gpu, case):
    assert_right(results("cudnn", case), case)


REFUSED = {
    "device": (dict(interpret=False), "splash runs on TPU", "cuDNN runs on NVIDIA GPUs"),
    "dtype": (dict(dtype="float32"), "in bfloat16 only", "bfloat16 and float16 are accepted"),
    "head size": (dict(H=36), "one of .64, 128, 256. is accepted", "multiples of 8 up to 256"),
    "length": (dict(T=129), "multiples of 128 are accepted", None),
    "heads": (dict(heads=(0, 1, 1)), "is irregular; splash", "would have to be repeated in memory"),
    "nothing seen": (dict(q_start=-128), "no query sees a key", "q_start is not 0"),
    "nothing left": (dict(q_start=300, window=9), "no query sees a key", "q_start is not 0"),
    "traced start": (dict(q_start=jnp.int32(0)), "q_start is traced", "q_start is not 0"),
    "segments": (dict(segments=True), None, "segments would need a mask"),
    "window, head size": (dict(H=256, window=9), None, "known to give NaN above 128"),
    "window, queries": (dict(T=256, window=9), None, "some queries see nothing"),
    "length 64": (dict(T=192, S=192), "multiples of 128", "known to give NaN in the gradient"),
}


def arguments(*, T=128, S=128, H=64, heads=(0, 1), dtype="bfloat16", segments=False, **settings):
    q = jnp.zeros((1, T, len(heads), H), dtype)
    kv = jnp.zeros((1, S, 2, H), dtype)
    ids = dict(segment_ids_BT=jnp.ones((1, T), jnp.int32)) if segments else {}
    return (q, kv, kv), dict(kv_head_of_query=heads, interpret=True, **ids) | settings


@pytest.mark.parametrize("refused", REFUSED)
def test_splash_refuses(refused):
    settings, sentence, _ = REFUSED[refused]
    arrays, settings = arguments(**settings)
    if sentence is None:
        attention(*arrays, implementation="splash", **settings)
        return
    with pytest.raises(NotImplementedError, match=f"attention: splash: .*{sentence}"):
        attention(*arrays, implementation="splash", **settings)


@pytest.mark.parametrize("refused", [name for name, (_, _, text) in REFUSED.items() if text])
def test_cudnn_refuses(refused, request):
    settings, _, sentence = REFUSED[refused]
    if refused != "device":
        request.getfixturevalue("a_gpu")
    arrays, settings = arguments(**settings)
    with pytest.raises(NotImplementedError, match=f"attention: cudnn: .*{sentence}"):
        attention(*arrays, implementation="cudnn", **{**settings, "interpret": False})


@pytest.mark.parametrize(("name", "interpret"), [("splash", True), ("cudnn", False)])
def test_no_gradient_through_the_log_sum_exp(a_gpu, name, interpret):
    arrays, settings = arguments()
    settings |= dict(implementation=name, interpret=interpret, return_lse=True)
    lse = lambda *x: jnp.sum(attention(*x, **settings)[1])
    with pytest.raises(NotImplementedError, match="no gradient through the log-sum-exp"):
        jax.grad(lse)(*arrays)


def test_neither_is_chosen_for_a_caller(monkeypatch):
    monkeypatch.setattr(splash, "target", lambda q: Target("tpu", "TPU v6 lite"))
    arrays, _ = arguments()
    text = str(jax.make_jaxpr(attention)(*arrays))
    assert "splash" not in text
