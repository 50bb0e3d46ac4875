"""Compiles for an H200 without one, and reads what the compiler says."""

import os

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.hardware import gpu
from pallas_kernels.hardware.isolated import IsolatedError, run_isolated
from pallas_kernels.hardware.sass import read_code, read_kernels, read_loop
from tests.pallas_kernels import programs

TILE = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)
LISTING = """
        .global         kernel
.text.kernel:
   -:-:-:Y:01        /*0000*/                   LDC R1, c[0x0][0x28]
.L_x_1:
   2&1:-:-:Y:05      /*0010*/               @!P1 BRA `(.L_x_0)
   -:-:-:Y:02        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], !UPT
.L_x_2:
   -:-:1:-:03        /*0030*/              @UP0 HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], gsb0
   1:-:-:Y:04        /*0040*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0
   -:-:-:Y:11        /*0050*/               @P1 BRA `(.L_x_2)
   -:-:-:Y:05        /*0060*/                   EXIT
.L_x_0:
   -:-:-:Y:05        /*0070*/                   BRA `(.L_x_1)
"""


def test_listing_counts_every_instruction_and_its_stalls():
    code = read_code(LISTING)
    assert (code.instructions, code.wgmma) == (8, 2)
    assert code.stall_cycles == 1 + 5 + 2 + 3 + 4 + 11 + 5 + 5
    assert code.tensor_cycles == 32 + 64  # 64 x N x 16 multiply-adds at 2,048 a cycle


def test_loop_is_what_a_predicated_backward_branch_encloses():
    loop = read_loop(LISTING)
    assert (loop.instructions, loop.wgmma) == (3, 1)
    assert (loop.stall_cycles, loop.tensor_cycles) == (18, 64)


def test_return_from_out_of_line_code_is_no_loop():
    assert read_loop(LISTING.replace("@P1 BRA", "@P1 NOP")) is None


def test_kernel_is_put_together_from_its_dumps(tmp_path):
    """Resources are counted when lowered, the rest when assembled; notes are recorded."""
    (tmp_path / "scan_1.ptxas").write_text(
        "ptxas /x, line 4; info    : Potential out of bound access\n"
        "ptxas info    : (C7514) Potential Performance Loss: serialized\n"
        "ptxas info    : Compiling entry function 'scan' for 'sm_90a'\n"
        "    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n"
        "ptxas info    : Used 168 registers, used 2 barriers, 1 bytes smem\n"
    )
    (tmp_path / "scan_1.sass_ctrl").write_text(LISTING)
    (tmp_path / "scan_7.resources.txt").write_text("Resources(smem_scratch_bytes=4096, x=1)")
    (tmp_path / "scan_2_0.resources.txt").write_text("Resources(smem_scratch_bytes=9999, x=1)")
    (kernel,) = read_kernels(str(tmp_path))
    assert (kernel.name, kernel.registers, kernel.spill_bytes) == ("scan_1", 168, 28)
    assert kernel.shared_memory == 4096
    assert kernel.wgmma == 2 and kernel.loop.wgmma == 1
    assert kernel.notes == (
        "Potential out of bound access",
        "(C7514) Potential Performance Loss: serialized",
    )


@pytest.mark.gpu_compiler
def test_small_kernel_compiles_for_h200():
    program = gpu.compile_for_h200(programs.wgmma_matmul, TILE, TILE)
    (kernel,) = program.kernels
    assert kernel.name.startswith("small_matmul")
    assert kernel.wgmma == 4  # 64 x 64 x 64 in steps of 16
    assert kernel.code.tensor_cycles == 4 * 32
    assert kernel.spill_bytes == 0
    assert 32 <= kernel.registers <= 255
    assert 3 * 64 * 64 * 2 <= kernel.shared_memory <= 3 * 64 * 64 * 2 + 2048
    assert program.memory.arguments == 2 * 64 * 64 * 2
    assert program.memory.results == 64 * 64 * 2


def test_missing_packages_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(gpu, "PACKAGES", ("jax", "no_such_plugin", "nvidia.cu13"))
    monkeypatch.setattr(gpu, "PROGRAMS", ())
    with pytest.raises(NotImplementedError, match=r"needs no_such_plugin.*: pip install "):
        gpu.compile_for_h200(programs.wgmma_matmul, TILE, TILE)


def test_fresh_process_hands_over_results_refusals_and_failures():
    assert run_isolated(divmod, 17, 5, environment={}) == (3, 2)
    with pytest.raises(NotImplementedError, match="dtype bfloat16; none is accepted"):
        run_isolated(programs.refuses, TILE, environment={})
    with pytest.raises(IsolatedError, match=r"no such shape \(64, 64\)"):
        run_isolated(programs.fails, TILE, environment={})
    with pytest.raises(IsolatedError, match="cannot import this by name"):
        run_isolated(lambda: 0, environment={})


def test_fresh_process_that_dies_is_an_error_with_its_last_words():
    with pytest.raises(IsolatedError, match="exit 7"):
        run_isolated(os._exit, 7, environment={})


def test_fresh_process_has_the_environment():
    assert run_isolated(os.getenv, "A_FLAG", environment={"A_FLAG": "set"}) == "set"
