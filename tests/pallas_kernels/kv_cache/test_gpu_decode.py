"""Runs the Hopper kernel over an encoded cache in the Mosaic GPU interpreter, against float32.

Shared memory and results start out as NaN there, and two accesses that may meet raise.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KV_FORMATS, KVFormat, PackedKV, attention_decode
from pallas_kernels.kv_cache.gpu import fragments
from pallas_kernels.kv_cache.gpu.blocks import HopperPackedBlocks, choose_packed_blocks
from tests.pallas_kernels.kv_cache import threads
from tests.tolerances import KERNEL, error_ratio

LENGTHS = (304, 0, 129, 1, 256)
interpreter = pytest.mark.interpreter("gpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Says what a step is run on; `slots` is a multiple of 16 and not of a block."""

    name: str
    lengths: tuple[int, ...] = LENGTHS
    head_dim: int = 64
    heads: tuple[int, ...] = (0, 0)
    slots: int = 304
    warpgroups: int = 2
    window: int | None = None
    segments: bool = False
    scale: float | None = None
    hostile: str = ""
    named: str = "ultraquant"
    sinks: int = 0
    recent: int = 0

    @property
    def format(self) -> KVFormat:
        return dataclasses.replace(KV_FORMATS[self.named], sinks=self.sinks, recent=self.recent)


CASES = [
    Case(name="a bit of all", heads=(1, 1, 0), lengths=LENGTHS[:2], segments=True, window=270),
    Case(name="heads, one unread", heads=(0, 2, 2, 3)),
    Case(
        name="heads of 128, window 70",
        head_dim=128,
        warpgroups=3,
        slots=400,
        window=70,
        hostile="zeros",
    ),
    Case(name="heads of 256", head_dim=256, hostile="huge channels"),
    Case(name="many readers", heads=(0,) * 33, hostile="tiny"),
    Case(name="scale -0.3, window 1", scale=-0.3, window=1),
    Case(name="sinks and recent tokens", sinks=3, recent=20),
]
TESTED = [
    pytest.param(case, marks=[pytest.mark.heavy] if number else [], id=case.name)
    for number, case in enumerate(CASES)
]


@functools.partial(jax.jit, static_argnums=0)
def arguments(case: Case):
    """Returns queries, lengths, the cache and the segments of rows and slots.

    Whole numbers as queries are still exact in bf16 when heads of 64 and 256 are rotated.
    """
    keys = jax.random.split(jax.random.key(len(case.name)), 4)
    B, K, H = len(case.lengths), max(case.heads) + 1, case.head_dim
    q_BNH = jnp.round(jax.random.normal(keys[0], (B, len(case.heads), H))).astype(jnp.bfloat16)
    k, v = (jax.random.normal(key, (B, case.slots, K, H), jnp.bfloat16) for key in keys[1:3])
    if case.hostile == "huge channels":
        k, v = k.at[..., 3].multiply(100.0), v.at[..., 7].multiply(1e20)
    if case.hostile == "tiny":
        k, v = k * 1e-3, v * 1e-30
    if case.hostile == "zeros":
        k, v = k.at[:, ::3].set(0), v.at[..., 32:64].set(0)
    cache = PackedKV.empty(case.format, B, case.slots, K, H, jnp.bfloat16).append(k, v, 0)
    ids_BS = jax.random.randint(keys[3], (B, case.slots), 0, 3) if case.segments else None
    return q_BNH, jnp.array(case.lengths), cache, ids_BS


def step(case: Case, implementation: str, interpret=False, blocks=None):
    def run(q_BNH, lengths_B, cache, ids_BS):
        return attention_decode(
            q_BNH,
            lengths_B=lengths_B,
            cache=cache,
            kv_head_of_query=case.heads,
            window=case.window,
            segment_ids_B=None if ids_BS is None else jnp.ones_like(lengths_B),
            kv_segment_ids_BS=ids_BS,
            scale=case.scale,
            return_lse=True,
            implementation=implementation,
            interpret=interpret,
            blocks=blocks,
        )

    return jax.jit(run)


def races():
    import jax.experimental.pallas.mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(detect_races=True)


@interpreter
@pytest.mark.parametrize("case", TESTED)
def test_equals_the_reference(case):
    """The kernel gets its queries rotated and rounded to bf16, so the reference gets these back."""
    q_BNH, *others = arguments(case)
    blocks = HopperPackedBlocks(warpgroups=case.warpgroups, stages=2, shares=2)
    found = step(case, "gpu", races(), blocks)(q_BNH, *others)
    rotate = case.format.keys.rotate
    q_BNH = rotate(rotate(q_BNH).astype(jnp.bfloat16))
    wanted = step(case, "reference")(q_BNH, *others)
    (out, lse), (wanted_out, wanted_lse) = (map(np.asarray, x) for x in (found, wanted))
    assert error_ratio(out, wanted_out) < KERNEL["bfloat16"].forward
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(wanted_lse))
    seen = ~np.isneginf(lse)
    assert error_ratio(lse[seen], wanted_lse[seen]) < KERNEL["float32"].forward
    assert not np.any(out[case.lengths.index(0)])


@pytest.mark.parametrize("H", [64, 128, 256])
@pytest.mark.parametrize("side", ["keys", "values"])
def test_threads_make_the_operand_that_the_interpreter_computes(side, H):
    rng = np.random.default_rng(H)
    codes_CT = rng.integers(0, 256, (H // 2, fragments.TOKENS), np.uint8)
    scales_GT = rng.integers(2, 253, (H // 32, fragments.TOKENS), np.uint8)
    scales_GT[:, ::5] = 0
    memory = np.concatenate([threads.swizzled(codes_CT), scales_GT.reshape(-1)])
    at = fragments.Sources(*(np.full(128, x, np.uint32) for x in (0, codes_CT.size)))
    found = threads.operand(getattr(fragments, side)(threads.Warpgroup(memory), at, H))
    wanted = jax.jit(getattr(fragments, f"plain_{side}"))(codes_CT, scales_GT)
    np.testing.assert_array_equal(found.astype(np.float32), np.asarray(wanted, np.float32))


def test_scales_at_the_ends_of_bf16_are_exact():
    """The interpreter's machine may flush what lies below 2^-126; the GPU does not."""
    codes_CT = np.tile(np.arange(16, dtype=np.uint8) * 17, 256).reshape(32, 128)
    scales_GT = np.full((2, 128), 1, np.uint8)
    memory = np.concatenate([threads.swizzled(codes_CT), scales_GT.reshape(-1)])
    at = fragments.Sources(*(np.full(128, x, np.uint32) for x in (0, codes_CT.size)))
    found = threads.operand(fragments.keys(threads.Warpgroup(memory), at, 64))
    assert np.abs(found[found != 0]).min() == 0.5 * 2.0**-126
    assert found.max() == 6 * 2.0**-126


def test_bytes_moved_are_few_more_than_those_of_the_cache():
    """The results of the shares are written and read once more, their columns padded."""
    for readers, keys in itertools.product((1, 2, 8), (8192, 32768)):
        cut, columns = choose_packed_blocks(128, readers, keys, programs=64), 8
        cache = keys * KV_FORMATS["ultraquant"].bytes_a_token(128)
        results = cut.shares * cut.warpgroups * columns * (128 + 1) * 4
        assert cache + 2 * results + columns * 128 * 2 <= 1.05 * cache


@interpreter
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(slots=300), "the cache has 300 slots; multiples of 16 are accepted"),
        (dict(head_dim=32), "the head dimension of q is 32; (64, 128, 256) are accepted"),
        (
            dict(named="int4"),
            "keys and values are stored as Int4 and Int4; the kernel reads UltraQuant",
        ),
    ],
)
def test_what_it_cannot_take_is_told(changes, words):
    case = Case(name="refused", **changes)
    with pytest.raises(NotImplementedError) as refusal:
        jax.eval_shape(step(case, "gpu", True), *jax.eval_shape(lambda: arguments(case)))
    assert words in str(refusal.value)
