"""Compiles for TPUs without one, and reads the schedule of programs with known counts."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.hardware import branches, bundles, hlo, tpu
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


INSTRUCTIONS = """= control target key start
     0   :  { %s1 = smov.u32 0 } /* Start region 0 */
   0x1 LB: > { %s2 = sadd.s32 1, %s1 }
   0x2   : > { %p3 = scmp.ge.s32.totalorder %s2, 10 /* loop exit test */ }
   0x3   : > { %p4 = scmp.ne.s32.totalorder %s2, 7 }
   0x4   : > { %9 = sbr.rel (%p4) target bundleno = 12 (0xc), region = 3 }
   0x5   :  {}
   0x6   :  {}
   0x7   :  {}
   0x8   :  {}
   0x9   : > { %v5 = vmatmul.f32 %v1  ;;  %v6 = vadd %v1 }
   0xa   : > { %v7 = vadd %v1 }
   0xb   : > { %v8 = vadd %v1 }
   0xc   : > { %10 = sbr.rel (!%p3) target bundleno = 1 (0x1), region = 2 }
   0xd   :  {}
   0xe   :  {}
   0xf   :  {}
  0x10   :  {}
  0x11   :  { %11 = vsyncadd }
"""
COLUMNS = "\n".join(
    f"{int('vmatmul' in line)} {line.count('vadd')}" for line in INSTRUCTIONS.splitlines()[1:]
)
UTILIZATION = f"== CAPACTIY:\nMATMUL, VALU\n    2     4\n== UTILIZATION:\n{COLUMNS}\n"


def listing(instructions=INSTRUCTIONS):
    return bundles.read_listing("made_up", instructions, UTILIZATION)


def test_listing_finds_the_loop_and_the_predicated_region():
    found = listing()
    assert found.bundles == 18
    assert found.capacity == {"MATMUL": 2, "VALU": 4}
    assert found.loops == (branches.Loop(first=1, last=16, trips=10),)
    (region,) = found.regions
    assert (region.first, region.last, region.branch) == (9, 11, 4)
    assert region.runs_if == "== 7"


@pytest.mark.parametrize(
    ("old", "new", "runs_if"),
    [
        ("scmp.ne.s32.totalorder %s2, 7", "scmp.le.s32.totalorder %s2, 0", "> 0"),
        ("scmp.ne.s32.totalorder %s2, 7", "por %p1, %p2", ""),
        ("rel (%p4)", "rel (!%p4)", "!= 7"),
        ("%s2 = sadd.s32 1, %s1", "%s2 = sand.u32 16, %s1", "== 7"),
        (
            "scmp.ne.s32.totalorder %s2, 7",
            "scmp.eq.s32.totalorder %s9, 0  ;;  %s9 = sand.u32 16, %s1",
            "& 16 != 0",
        ),
        (
            "%p4 = scmp.ne.s32.totalorder %s2, 7",
            "%p4 = pnand %p5, %p6  ;;  %p5 = scmp.lt.s32.totalorder %s2, 7  ;;  "
            "%p6 = scmp.ne.s32.totalorder %s2, 3",
            "!= 3 and < 7",
        ),
        (
            "%p4 = scmp.ne.s32.totalorder %s2, 7",
            "%p8 = scmp.ge.s32.totalorder %s2, 5  ;;  %s9 = scalar_select /*predicate=*/%p8, "
            "/*on_true=*/1, /*on_false=*/0  ;;  %7 = sst [smem:[#allocation3_spill]] %s9  ;;  "
            "%s8 = sld [smem:[#allocation3_spill]]  ;;  %p4 = scmp.ne.s32.totalorder %s8, 0",
            "< 5",
        ),
    ],
)
def test_under_which_comparison_a_region_runs(old, new, runs_if):
    assert old in INSTRUCTIONS
    (region,) = listing(INSTRUCTIONS.replace(old, new)).regions
    assert region.runs_if == runs_if


def test_frequencies_multiply_trips_and_shares():
    often = bundles.frequencies(listing())
    assert often.sum() == 1 + 10 * 16 + 1
    assert often @ listing().slots["VALU"] == 10 * 3
    weighed = bundles.frequencies(listing(), {"== 7": 0.1})
    np.testing.assert_allclose(weighed.sum(), 1 + 10 * 13 + 1 * 3 + 1)
    np.testing.assert_allclose(weighed @ listing().slots["MATMUL"], 1)


def test_loop_with_an_unknown_bound_says_so():
    (loop,) = listing(INSTRUCTIONS.replace("%s2, 10 /*", "%s2, %s9 /*")).loops
    assert loop.trips is None
    dynamic = listing(INSTRUCTIONS.replace(", 10 /*", ", %s9 /*"))
    assert bundles.frequencies(dynamic).sum() == 18
    assert bundles.frequencies(dynamic.with_trips(3)).sum() == 1 + 3 * 16 + 1


def test_copies_between_memories():
    copy = "{ %s3 = dma.hbm_to_vmem [thread:$0] (!%p1), /*hbm=*/%s1, /*size_in_granules=*/4, }"
    text = INSTRUCTIONS.replace("{ %v7 = vadd %v1 }", copy)
    same = UTILIZATION.replace("0 1\n0 1\n", "0 0\n0 1\n")
    found = bundles.read_listing("made_up", text, same)
    assert found.copies == ((10, 4 * 32),)
    assert bundles.copied_bytes(found, bundles.frequencies(found)) == 10 * 4 * 32
    unknown = bundles.read_listing("made_up", text.replace("*/4,", "*/%s4,"), same)
    assert unknown.copies == ((10, None),)
    either = "%s5 = scalar_select /*predicate=*/%p2, /*on_true=*/0, /*on_false=*/2  ;;  "
    either += "%s4 = sshll.u32 %s5, 2"
    text = text.replace("*/4,", "*/%s4,").replace("%p3 = ", f"{either}  ;;  %p3 = ")
    assert bundles.read_listing("made_up", text, same).copies == ((10, 8 * 32),)


def test_rows_and_bundles_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="made_up: 18 bundles but 17 rows"):
        short = UTILIZATION.rstrip().rsplit("\n", 1)[0]
        bundles.read_listing("made_up", INSTRUCTIONS, short)


HLO = """HloModule jit_f

%body.1 (arg.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %fusion.2 = f32[8]{0} fusion(%arg.1), kind=kLoop, calls=%fused_computation.3
  ROOT %tuple.4 = (s32[]{:T(128)}, f32[8]{0}) tuple(%arg.1, %fusion.2)
}

%test.5 (arg.6: (s32[], f32[8])) -> pred[] {
  %arg.6 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %limit.7 = s32[]{:T(128)} constant(12)
  %index.8 = s32[]{:T(128)} get-tuple-element(%arg.6), index=0
  ROOT %lt.9 = pred[]{:T(512)} compare(%index.8, %limit.7), direction=LT, metadata={op_name="lt"}
}

%called.17 (arg.18: f32[8]) -> f32[8] {
  %arg.18 = f32[8]{0} parameter(0)
  ROOT %copy.19 = f32[8]{0} copy(%arg.18)
}

ENTRY %main.10 (x.11: f32[8]) -> (s32[], f32[8]) {
  %x.11 = f32[8]{0} parameter(0)
  %start.12 = s32[]{:T(128)} constant(2)
  %copy.13 = s32[]{:T(128)} copy(%start.12)
  %tuple.14 = (s32[]{:T(128)}, f32[8]{0}) tuple(%copy.13, %x.11)
  %while.15 = (s32[]{:T(128)}, f32[8]{0}) while(%tuple.14), condition=%test.5, body=%body.1
  ROOT %call.16 = f32[8]{0:T(8,128)} call(%x.11), to_apply=%called.17
}
"""


def test_while_loop_runs_from_its_start_to_its_limit():
    counts = hlo.executions(HLO)
    assert counts["fusion.2"] == 12 - 2
    assert counts["copy.13"] == counts["while.15"] == counts["copy.19"] == 1


def test_loop_that_cannot_be_counted_is_refused():
    other = HLO.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match=r"trips of the loop with condition test\.5"):
        hlo.executions(other)
    assert hlo.executions(other, trips=6.5)["fusion.2"] == 6
    assert hlo.executions(HLO, trips=6.5)["fusion.2"] == 12 - 2
