"""Compares the decode step over packed caches with the definition on decoded keys and values."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KV_FORMATS, KVFormat, PackedKV, attention_decode
from pallas_kernels.kv_cache.fp8 import Fp8
from pallas_kernels.kv_cache.int4 import Int4
from pallas_kernels.kv_cache.raw import Raw
from pallas_kernels.kv_cache.turboquant import TurboQuant4
from pallas_kernels.kv_cache.ultraquant import UltraQuant
from tests.pallas_kernels.attention.cases import Case, Inputs
from tests.pallas_kernels.attention.oracle import float64_results
from tests.pallas_kernels.kit.cases import segment_ids
from tests.tolerances import KERNEL, error_ratio

B, S, K, H = 5, 40, 4, 64
LENGTHS = np.array([40, 23, 1, 0, 39], np.int32)
PADDING = np.array([0, 7, 0, 0, 38], np.int32)
HEADS = (0, 2, 2, 3, 0, 2)
ULTRAQUANT = KV_FORMATS["ultraquant"]
CASES = {
    "ultraquant": (ULTRAQUANT, {}),
    "turboquant4, window, regular heads": (
        KV_FORMATS["turboquant4"],
        {"window": 9, "kv_head_of_query": None},
    ),
    "fp8 and int4, mixed segments": (
        KVFormat(keys=Fp8(), values=Int4()),
        {"segments": "mixed", "window": 30},
    ),
    "bf16": (KV_FORMATS["bf16"], {"segments": "mixed"}),
    "sinks and recent": (
        KVFormat(keys=UltraQuant(), values=TurboQuant4(), sinks=3, recent=6),
        {"segments": "left", "window": 20},
    ),
    "sinks, raw keys, padding without ids": (
        KVFormat(keys=Raw(), values=UltraQuant(), sinks=2),
        {"unseen": "left"},
    ),
    "recent, raw values, scale": (
        KVFormat(keys=Int4(group=32), values=Raw(), recent=50),
        {"scale": -0.3},
    ),
}
BFLOAT16 = ("ultraquant", "sinks and recent")
EVERY = [(name, "bfloat16" if name in BFLOAT16 else "float32") for name in CASES]


@functools.cache
def inputs(format: KVFormat, dtype: str):
    """Returns queries and a filled cache; two rows have padding on the left."""
    rng = np.random.default_rng(0)
    q_BNH = jnp.asarray(2 * rng.normal(size=(B, len(HEADS), H)), dtype)
    k, v = (jnp.asarray(x, dtype) for x in rng.normal(size=(2, B, S, K, H)))
    empty = PackedKV.empty(format, B, S, K, H, dtype)
    return q_BNH, jax.jit(PackedKV.append)(empty, k, v, 0, np.arange(S) >= PADDING[:, None])


def segments(kind: str | None):
    """Returns ids of queries [B] and keys [B, S], or none."""
    if kind is None:
        return None, None
    if kind == "left":
        return jnp.ones(B, int), jnp.asarray(np.arange(S) >= PADDING[:, None], int)
    keys_BS = segment_ids(kind, B, S)
    last_B1 = np.maximum(LENGTHS - 1, 0)[:, None]
    return jnp.asarray(np.take_along_axis(keys_BS, last_B1, axis=1)[:, 0]), jnp.asarray(keys_BS)


def step(q_BNH, cache, implementation=None, *, kind: str | None = None, **settings):
    """Runs the decode step with the lengths and segments of the tests."""
    queries_B, keys_BS = segments(kind)
    return attention_decode(
        q_BNH,
        lengths_B=jnp.asarray(LENGTHS),
        cache=cache,
        **({"kv_head_of_query": HEADS} | settings),
        segment_ids_B=queries_B,
        kv_segment_ids_BS=keys_BS,
        return_lse=True,
        implementation=implementation,
    )


def of_case(name: str, implementation: str):
    """Returns the step of a case, of queries and cache."""
    settings = {key: x for key, x in CASES[name][1].items() if key != "unseen"}
    kind = settings.pop("segments", None)
    return functools.partial(step, implementation=implementation, kind=kind, **settings)


def float32(tree):
    return jax.tree.map(lambda x: np.asarray(x.astype(jnp.float32)), tree)


def assert_near(found, wanted, limit: float):
    """Compares output and log-sum-exp; both or none must be -inf."""
    for x, exact in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(np.isneginf(x), np.isneginf(exact))
        assert error_ratio(*(np.where(np.isneginf(y), 0, y) for y in (x, exact))) < limit


@pytest.mark.parametrize(("name", "dtype"), EVERY)
def test_plain_jax_and_reference_are_attention_over_the_decoded_cache(name, dtype):
    format, settings = CASES[name]
    q_BNH, cache = inputs(format, dtype)
    heads = settings.get("kv_head_of_query", HEADS)
    q_BNH = q_BNH if heads else q_BNH[:, :K]
    steps = [of_case(name, implementation) for implementation in ("chunked", "reference")]
    both = jax.jit(lambda q, cache: ([x(q, cache) for x in steps], cache.decoded(jnp.float32)))
    (chunked, reference), (k_BSKH, v_BSKH) = both(q_BNH, cache)
    assert chunked[0].dtype == reference[0].dtype == q_BNH.dtype
    chunked, reference = float32((chunked, reference))
    case = Case(
        name=name,
        kv_head_of_query=heads or tuple(range(K)),
        window=settings.get("window"),
        scale=settings.get("scale"),
    )
    queries_B, keys_BS = segments(settings.get("segments", settings.get("unseen")))
    ids = (None, None) if keys_BS is None else (queries_B[:, None], keys_BS)
    arrays = (q_BNH[:, None].astype(jnp.float32), k_BSKH, v_BSKH, jnp.asarray(LENGTHS - 1))
    exact = float64_results(Inputs(*arrays, *ids), case)
    exact = exact.out[:, 0], exact.lse[:, 0]
    assert_near(chunked, exact, KERNEL[dtype].forward)
    assert_near(reference, exact, KERNEL[dtype].forward)
    assert not np.any(chunked[0][3]) and np.all(np.isneginf(chunked[1][3]))  # of length 0


def test_gradients_of_the_queries_are_those_of_the_reference():
    q_BNH, cache = inputs(ULTRAQUANT, "float32")

    def gradient(q, cache, implementation):
        (out, lse), pull = jax.vjp(lambda q: step(q, cache, implementation), q)
        return pull((jnp.cos(out), jnp.where(jnp.isfinite(lse), 1.0, 0.0)))[0]

    both = jax.jit(lambda *x: [gradient(*x, name) for name in ("chunked", "reference")])
    found, wanted = both(q_BNH, cache)
    assert error_ratio(found, wanted) < 1e-5 and np.any(wanted)


def assert_equal(x, y):
    np.testing.assert_array_equal(x, y)


def test_what_lies_beyond_the_length_does_not_matter():
    q_BNH, cache = inputs(ULTRAQUANT, "float32")
    run = jax.jit(step)
    k, v = np.full((2, B, 1, K, H), np.where(np.arange(H) % 3, 1e4, np.nan))
    dirty = jax.jit(PackedKV.append)(cache, *map(jnp.float32, (k, v)), S - 1)
    rows = LENGTHS < S
    clean, other = (jax.tree.map(lambda x: x[rows], run(q_BNH, x)) for x in (cache, dirty))
    jax.tree.map(assert_equal, clean, other)
    assert np.all(np.isfinite(run(q_BNH, dirty)[0]))


def test_plain_jax_decodes_ultraquant_to_the_dtype_of_the_queries():
    """No array as large as the keys or the values is float32."""
    text = jax.jit(step).lower(*inputs(ULTRAQUANT, "bfloat16")).as_text()
    shapes = re.findall(r"tensor<([\dx]+)xf32>", text)
    assert shapes and max(math.prod(map(int, x.split("x"))) for x in shapes) < B * S * K * H


def test_a_call_without_a_cache_or_with_two_is_refused():
    q_BNH, cache = inputs(ULTRAQUANT, "float32")
    message = "attention_decode needs lengths_B, and either both caches or `cache`"
    lengths_B = jnp.asarray(LENGTHS)
    k_BSKH = jnp.zeros((B, S, K, H))
    for arguments in (
        dict(lengths_B=lengths_B),
        dict(cache=cache),
        dict(k_cache_BSKH=k_BSKH, lengths_B=lengths_B),
        dict(k_cache_BSKH=k_BSKH, v_cache_BSKH=k_BSKH, lengths_B=lengths_B, cache=cache),
    ):
        with pytest.raises(ValueError, match=message):
            attention_decode(q_BNH, **arguments)


def test_queries_of_another_shape_are_refused():
    q_BNH, cache = inputs(ULTRAQUANT, "float32")
    for wrong in (q_BNH[:1], q_BNH[..., :32]):
        with pytest.raises(ValueError, match=f"and the cache {B} rows of heads of {H}"):
            attention_decode(wrong, lengths_B=jnp.asarray(LENGTHS)[: len(wrong)], cache=cache)
