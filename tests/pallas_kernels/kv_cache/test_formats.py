"""Compares what the formats store, bit for bit, with their rules written out in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_cache.formats import KV_FORMATS, KVFormat, kv_format
from pallas_kernels.kv_cache.fp8 import Fp8
from pallas_kernels.kv_cache.hadamard import hadamard
from pallas_kernels.kv_cache.int4 import Int4
from pallas_kernels.kv_cache.nibbles import pack, unpack
from pallas_kernels.kv_cache.raw import Raw
from pallas_kernels.kv_cache.turboquant import TurboQuant4
from pallas_kernels.kv_cache.ultraquant import UltraQuant
from tests.pallas_kernels.kv_cache import oracle

SIDES = [
    Raw(),
    Fp8(),
    UltraQuant(),
    UltraQuant(c=0.2, rotated=False),
    TurboQuant4(),
    TurboQuant4(rotated=False),
    Int4(),
    Int4(group=32),
]
sides = pytest.mark.parametrize("side", SIDES, ids=str)


@functools.cache
def both_ways(side):
    """Compiles encode, decode and `stored` in both dtypes: x -> (parts, decoded, f32, bf16)."""

    def run(x_XH):
        parts = side.encode(x_XH)
        low = side.stored(parts, jnp.bfloat16).astype(jnp.float32)
        return parts, side.decode(parts), side.stored(parts), low

    compiled = jax.jit(run)
    return lambda x_XH: jax.tree.map(np.asarray, compiled(x_XH))


def integers(H: int) -> np.ndarray:
    """Makes vectors whose rotation is rounded at most once; some have a large channel."""
    x_XH = np.random.default_rng(0).integers(-40, 41, size=(64, H)).astype(np.float32)
    x_XH[1::4, 5] = 3000
    return x_XH * 2.0 ** np.arange(-20, 12, 0.5).astype(int)[:, None].astype(np.float32)


@pytest.mark.parametrize("H", [64, 128])
def test_the_rotation_is_the_normalised_sylvester_matrix(H):
    x_XH = np.random.default_rng(0).normal(size=(3, H)).astype(np.float32)
    x_XH[2] = 1e37
    turn = jax.jit(hadamard)
    turned_XH, back_XH = turn(x_XH), turn(turn(x_XH))
    exact_XH = x_XH @ oracle.sylvester(H) / np.sqrt(H)
    for found_XH, wanted_XH in ((turned_XH, exact_XH), (back_XH, x_XH)):
        np.testing.assert_allclose(found_XH[:2], wanted_XH[:2], rtol=0, atol=2e-6)
        np.testing.assert_allclose(found_XH[2], wanted_XH[2], rtol=0, atol=1e31)


def test_the_even_channel_is_in_the_low_nibble():
    codes = jnp.array([[1, 2, 15, 0]], jnp.uint8)
    assert pack(codes).tolist() == [[0x21, 0x0F]]
    assert unpack(pack(codes)).tolist() == codes.tolist()


def on_both(*sides):
    """Runs a test for all formats on float32 vectors, and for the first on longer bfloat16 ones."""
    cases = [*((side, 128, "float32") for side in sides), (sides[0], 256, "bfloat16")]
    return pytest.mark.parametrize(("side", "H", "dtype"), cases, ids=str)


@on_both(UltraQuant(), UltraQuant(c=0.2, rotated=False))
def test_ultraquant_stores_what_its_rules_say(side, H, dtype):
    x_XH = jnp.asarray(integers(H), dtype)
    parts, decoded, stored, low = both_ways(side)(x_XH)
    *expected, values = oracle.ultraquant(np.asarray(x_XH, np.float64), side.c, side.rotated)
    for part, wanted in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(part, wanted)
        assert part.dtype == np.uint8
    np.testing.assert_array_equal(stored, values)
    np.testing.assert_array_equal(low, values)  # exact in bfloat16 too
    back = values @ oracle.sylvester(H) / np.sqrt(H) if side.rotated else values
    assert np.abs(decoded - back).max() <= 1e-6 * np.abs(values).max()


@on_both(TurboQuant4(), TurboQuant4(rotated=False))
def test_turboquant_stores_what_its_rules_say(side, H, dtype):
    """Factors are sums in float32, so that one may be the float16 beside the exact one."""
    x_XH = jnp.asarray(integers(H), dtype)
    (codes, factors), _, stored, _ = both_ways(side)(x_XH)
    wanted, exact_factors, values = oracle.turboquant(np.asarray(x_XH, np.float64), side.rotated)
    np.testing.assert_array_equal(codes, wanted)
    np.testing.assert_array_max_ulp(factors, exact_factors, maxulp=1)
    np.testing.assert_allclose(stored, values, rtol=1.1e-3)


@on_both(Int4(group=32), Int4())
def test_int4_stores_what_its_rules_say(side, H, dtype):
    x_XH = jnp.asarray(integers(H), dtype)
    parts, decoded, *_ = both_ways(side)(x_XH)
    *expected, values = oracle.int4(np.asarray(x_XH, np.float64), side.group or H)
    for part, wanted in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(part, wanted)
    np.testing.assert_array_equal(decoded, values)


@on_both(Fp8())
def test_fp8_stores_what_its_rules_say(side, H, dtype):
    x_XH = jnp.asarray(integers(H), dtype)
    _, decoded, stored, low = both_ways(side)(x_XH)
    for x in (decoded, stored, low):
        np.testing.assert_array_equal(x, oracle.e4m3(np.asarray(x_XH, np.float64)))


@pytest.mark.parametrize(("c", "top"), [(0.156, 252), (0.2, 253), (2**-2.5, 252), (0.5, 254)])
def test_exponents_are_rounded_as_python_rounds_them(c, top):
    """Looks at the floats beside each point of change; with c = 2^-2.5 there are exact ties."""
    largest = [0.0, 1e-45, float(np.finfo(np.float32).max), math.inf, math.nan]
    for exponent in range(-126, 128):
        middle = 2 ** (exponent + 0.5) / c / 2 ** math.ceil(-math.log2(c))
        for point in (middle, 2 * middle, 2.0**exponent):
            near = np.float32(min(point, 3e38))
            largest += [np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.inf)]
    x_XH = np.zeros((len(largest), 32), np.float32)
    x_XH[:, 7] = np.where(np.arange(len(largest)) % 2, -1, 1) * np.array(largest, np.float32)
    _, scales = jax.jit(UltraQuant(c, rotated=False).encode)(x_XH)
    wanted = [oracle.scale_byte(float(x), c) for x in np.array(largest, np.float32)]
    np.testing.assert_array_equal(scales[:, 0], wanted)
    assert {0, 1} <= set(wanted) and max(wanted) == top


@pytest.mark.parametrize("exponent", [-100, 0, 100])
def test_halfway_between_levels_the_lower_one_is_taken(exponent):
    middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    points = [y for x in middles for y in (x, np.nextafter(np.float32(x), np.float32(9)))]
    points += [np.nextafter(np.float32(x), np.float32(0)) for x in middles]
    x_XH = np.zeros((2, 32), np.float32)
    x_XH[:, : len(points)] = points
    x_XH[:, 31], x_XH[:, 30] = 8.0, -0.0
    x_XH = np.ldexp(x_XH * [[1], [-1]], exponent).astype(np.float32)
    parts, decoded, *_ = both_ways(UltraQuant(rotated=False))(x_XH)
    *expected, values = oracle.ultraquant(x_XH, 0.156, False)
    np.testing.assert_array_equal(parts[0], expected[0])
    np.testing.assert_array_equal(decoded, values)
    assert np.ldexp(decoded[:, 0], -exponent).tolist() == [0.0, -0.5]


@sides
def test_zeros_huge_and_tiny_channels(side):
    x_XH = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    x_XH[0] = 0
    x_XH[1, 3] = 1e30
    x_XH[2] *= 1e-42
    x_XH[3] *= 1e-38
    x_XH[4] *= 1e4
    _, decoded, _, low = both_ways(side)(x_XH)
    assert np.all(np.isfinite(decoded)) and np.all(np.isfinite(low))
    np.testing.assert_array_equal(decoded[0], 0)
    assert np.all(np.abs(decoded[2:4]) <= 2 * np.abs(x_XH[2:4]).max() + 1e-7 * (side == Int4()))
    limit = {Fp8: 448, TurboQuant4: 65504 * 2.74 * 12, Int4: 65504 * 16}.get(type(side), 1e30)
    assert 0.9 * min(limit, 65504) < np.abs(decoded[1]).max() <= 1.5 * limit
    np.testing.assert_allclose(decoded[5], x_XH[5], rtol=0, atol=1)


@sides
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_nan_and_inf(side, value):
    """They leave nothing but zeros where they are in a group, and other vectors alone."""
    clean_XH = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    x_XH = clean_XH.copy()
    x_XH[2, 40] = value
    decoded, wanted = both_ways(side)(x_XH)[1], both_ways(side)(clean_XH)[1]
    np.testing.assert_array_equal(np.delete(decoded, 2, 0), np.delete(wanted, 2, 0))
    if isinstance(side, Raw):
        np.testing.assert_array_equal(decoded[2], x_XH[2])
    elif isinstance(side, Fp8):
        np.testing.assert_array_equal(decoded[2, 40], np.clip(value, -448, 448))
    else:
        is_whole = side.rotated or isinstance(side, TurboQuant4) or side == Int4()
        np.testing.assert_array_equal(decoded[2, slice(None) if is_whole else slice(32, 64)], 0)
        if not is_whole:
            np.testing.assert_array_equal(decoded[2, 64:], wanted[2, 64:])


def test_bytes_of_a_token():
    assert {name: format.bytes_a_token(128) for name, format in KV_FORMATS.items()} == {
        "bf16": 512,
        "fp8": 256,
        "ultraquant": 136,
        "ultraquant-tuned": 136,
        "turboquant4": 132,
        "int4": 136,
    }
    assert KV_FORMATS["ultraquant"].bytes_a_token(256) == 272
    assert KV_FORMATS["bf16"].bytes_a_token(128, jnp.float32) == 1024


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kv_format("int3"), "'int3' is not a KV format; choose one of bf16, fp8, ultraq"),
        (lambda: UltraQuant().bytes_a_vector(96), "that is a power of 2, not 96"),
        (lambda: UltraQuant().bytes_a_vector(16), "32 channels do not divide a head dimension"),
        (lambda: TurboQuant4(rotated=False).bytes_a_vector(5), "an even head dimension, not 5"),
        (lambda: UltraQuant(c=0.0), "c=0.0; choose one above 0"),
        (lambda: KVFormat(keys=Raw(), values=Raw(), sinks=-1), "sinks=-1; choose a number"),
        (lambda: KVFormat(keys=Raw(), values=Raw(), recent=True), "recent=True; choose a number"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
