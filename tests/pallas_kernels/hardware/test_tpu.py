"""Compiles for TPUs without one, and reads the schedule of programs with known counts."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.hardware import bundles, tpu
from tests.pallas_kernels import programs

FACTORS = (
    jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16),
    jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16),
)
POWERS = jax.ShapeDtypeStruct((4096, 256), jnp.bfloat16)
KINDS = jax.ShapeDtypeStruct((len(programs.KINDS) * 256, 256), jnp.bfloat16)
MULTIPLY_ADDS = 4096 * 1024 * 4096


@functools.cache
def program(fn, *shapes, chip="v6e"):
    return tpu.compile_for_tpu(fn, *shapes, chip=chip)


def share_of_kinds(*kinds: int) -> float:
    return sum(kind in kinds for kind in programs.KINDS) / len(programs.KINDS)


def kernel(compiled, name):
    (found,) = [x for x in compiled.kernels if x.name.startswith(name)]
    return found


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    ("chip", "multiply_adds_a_slot", "capacity"),
    [
        ("v5e", 128 * 128, 4),
        ("v5p", 128 * 128, 4),
        ("v6e", 8 * 128 * 128, 2),
        ("tpu7x", 8 * 128 * 128, 2),
    ],
)
def test_matmul_holds_the_matrix_units_exactly_as_long_as_it_must(
    chip, multiply_adds_a_slot, capacity
):
    compiled = program(programs.tpu_matmul, *FACTORS, chip=chip)
    found = kernel(compiled, "tpu_matmul")
    assert found.grid_steps == 8 * 8 + 2
    assert found.executions == 1
    assert found.uncounted_loops == 0
    assert found.slots["MATMUL"] == pytest.approx(MULTIPLY_ADDS / multiply_adds_a_slot, rel=1e-12)
    assert compiled.capacity["MATMUL"] == capacity
    assert found.slots["MATMUL"] / capacity < found.step_cycles * 66 <= found.cycles
    assert 2 << 20 < found.vmem_bytes < 16 << 20
    assert compiled.memory.arguments == 2 * 4096 * 1024 * 2
    assert compiled.memory.results == 4096 * 4096 * 2


@pytest.mark.tpu_compiler
def test_program_is_the_sum_of_its_kernels():
    compiled = program(programs.tpu_matmul, *FACTORS)
    assert {x.name.partition(".")[0] for x in compiled.kernels} == {"tpu_matmul", "TLP"}
    assert compiled.cycles == sum(x.cycles for x in compiled.kernels)
    found = kernel(compiled, "tpu_matmul")
    assert compiled.share("MATMUL") == found.slots["MATMUL"] / (2 * compiled.cycles)
    assert 0.6 < compiled.share("MATMUL") < 0.9


@pytest.mark.tpu_compiler
def test_loop_inside_a_kernel_counts_its_trips():
    found = kernel(program(programs.tpu_loop_and_branch, POWERS), "powers")
    assert found.grid_steps == 16 + 2
    assert found.slots["MATMUL"] == pytest.approx(16 * 7 * 256**3 / (8 * 128 * 128), rel=1e-12)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_bodies_count_as_often_as_their_kind_occurs(chip):
    a_product = 256**3 / {"v5e": 128 * 128, "v6e": 8 * 128 * 128}[chip]
    shares = {f"== {kind}": share_of_kinds(kind) for kind in (11, 12)}
    shares[f"& {programs.FIRST} != 0"] = 2 / 8
    compiled = tpu.compile_for_tpu(
        programs.tpu_kinds, KINDS, chip=chip, known={"kinds": bundles.Known(shares=shares)}
    )
    found = kernel(compiled, "kinds")
    assert found.slots["MATMUL"] == pytest.approx((2 * 1 + 4 * 3) * a_product, rel=1e-12)
    always = kernel(program(programs.tpu_kinds, KINDS, chip=chip), "kinds")
    assert always.slots["MATMUL"] == pytest.approx(8 * (1 + 3) * a_product, rel=1e-12)
    assert found.cycles < always.cycles


@pytest.mark.tpu_compiler
def test_a_share_of_what_is_not_there_is_refused():
    compile_with = lambda **known: tpu.compile_for_tpu(programs.tpu_kinds, KINDS, known=known)
    with pytest.raises(ValueError, match=r"kinds\S*: no region runs if == 14"):
        compile_with(kinds=bundles.Known(shares={"== 11": 0.5, "== 14": 0.5}))
    with pytest.raises(ValueError, match="no kernel's name starts with other"):
        compile_with(other=bundles.Known())


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(("chip", "matmul_mib"), [("v5e", 160), ("v6e", 160), ("tpu7x", 48)])
def test_copies_from_and_to_hbm(chip, matmul_mib):
    """The 64 steps copy three blocks of 1, 1 and 0.5 MiB; a tpu7x keeps both factors in VMEM."""
    assert program(programs.tpu_matmul, *FACTORS, chip=chip).dma_bytes == matmul_mib << 20
    powers = program(programs.tpu_loop_and_branch, POWERS, chip=chip)
    assert powers.dma_bytes == 4096 * 256 * (2 + 4)


@pytest.mark.tpu_compiler
def test_kernel_in_an_xla_loop_counts_once_a_trip():
    compiled = program(programs.tpu_scan, *FACTORS)
    found = kernel(compiled, "tpu_matmul")
    assert found.executions == 5
    assert found.slots["MATMUL"] == pytest.approx(5 * MULTIPLY_ADDS / (8 * 128 * 128), rel=1e-12)
    others = [x for x in compiled.kernels if x is not found]
    assert sum(x.executions == 5 for x in others) >= 3  # XLA's own kernels of the loop
    assert kernel(compiled, "TLP").cycles > 5 * 100


def test_missing_libtpu_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match=r"pip install 'hydrahead_jax\[hardware-free\]'"):
        tpu.compile_for_tpu(programs.tpu_matmul, *FACTORS)


@pytest.mark.tpu_compiler
def test_refusal_arrives_as_refusal():
    with pytest.raises(NotImplementedError, match="dtype bfloat16; none is accepted"):
        tpu.compile_for_tpu(programs.refuses, FACTORS[0])


@pytest.mark.tpu_compiler
def test_old_dumps_are_not_mixed_with_new_ones(tmp_path):
    with pytest.raises(FileExistsError):
        tpu.compile_for_tpu(programs.tpu_matmul, *FACTORS, dump=str(tmp_path))
