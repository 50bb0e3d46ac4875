"""Checks how the compilers' texts are read: listings of bundles, and loops of HLO."""

import numpy as np
import pytest

from pallas_kernels.hardware import branches, bundles, hlo

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
