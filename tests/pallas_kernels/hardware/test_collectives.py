"""Reads from a compiled program's text what it sends."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.hardware.assigned import compile_until_assigned, read_buffers
from pallas_kernels.hardware.collectives import Collective, traffic
from pallas_kernels.hardware.isolated import run_isolated
from pallas_kernels.hardware.memory import Memory
from pallas_kernels.hardware.topology import TPU_ENVIRONMENT, tpu_devices

# Instructions as libtpu and XLA for GPU write them; names and shapes are shortened.
PROGRAM = textwrap.dedent("""\
    HloModule jit_step, is_scheduled=true, replica_count=1, num_partitions=8

    %add (a: f32[], b: f32[]) -> f32[] {
      %a = f32[]{:T(128)} parameter(0)
      %b = f32[]{:T(128)} parameter(1)
      ROOT %sum = f32[]{:T(128)} add(%a, %b)
    }

    %all-reduce-scatter.1 (p: bf16[64,32]) -> bf16[16,32] {
      %p = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
      %r = bf16[64,32] all-reduce(%p), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}
      ROOT %mine = bf16[16,32]{1,0} dynamic-slice(%inner, %c, %c), dynamic_slice_sizes={16,32}
    }

    %gather_start (g: f32[4,8]) -> f32[8,8] {
      %g = f32[4,8]{1,0} parameter(0)
      ROOT %part.1 = f32[8,8]{1,0} all-gather(%g), channel_id=4, replica_groups=[4,2]<=[8]
    }

    %gather_done (h: f32[4,8]) -> f32[8,8] {
      %h = f32[4,8]{1,0} parameter(0)
      ROOT %part.2 = f32[8,8]{1,0} all-gather(%h), channel_id=4, replica_groups=[4,2]<=[8]
    }

    %offloaded (o: f32[8]) -> f32[8] {
      %o = f32[8]{0} parameter(0)
      ROOT %far = f32[8]{0} all-to-all(%o), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}
    }, execution_thread="sparsecore"

    %condition (s: (s32[], f32[8])) -> pred[] {
      %s = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
      %limit = s32[]{:T(128)} constant(7)
      ROOT %less = pred[]{:T(512)} compare(%s#0, %limit), direction=LT
    }

    %body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
      %t = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
      %start = (f32[8]{0}, u32[]{:S(2)}) collective-permute-start(%t#1), channel_id=1
      %done = f32[8]{0} collective-permute-done(%start)
      ROOT %next = (s32[]{:T(128)}, f32[8]{0}) tuple(%t#0, %done)
    }

    ENTRY %main (x: bf16[64,32], y: f32[4,8], z: f32[8]) -> f32[8] {
      %x = bf16[64,32]{1,0} parameter(0)
      %y = f32[4,8]{1,0} parameter(1)
      %z = f32[8]{0} parameter(2)
      %fused = bf16[16,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
      %begun = f32[8,8]{1,0} fusion(%y), kind=kCustom, calls=%gather_start
      %ended = f32[8,8]{1,0} fusion(%y), kind=kCustom, calls=%gather_done
      %sc-start = ((), f32[8]{0}) custom-call-start(%z), called_computations={%offloaded}
      %sc-done = f32[8]{0} custom-call-done(%sc-start)
      %zero = s32[]{:T(128)} constant(2)
      %state = (s32[]{:T(128)}, f32[8]{0}) tuple(%zero, %sc-done)
      %loop = (s32[]{:T(128)}, f32[8]{0}) while(%state), condition=%condition, body=%body
      %total = f32[8]{0} all-reduce(%loop#1), channel_id=5, replica_groups={}, to_apply=%add
      ROOT %end = f32[8]{0} copy(%total)
    }
    """)


def test_every_form_of_collective_is_read():
    found = traffic(PROGRAM)
    assert found.uncounted_loops == 0
    assert sorted(found.collectives) == [
        Collective("all-gather", 2, 1, 4 * 8 * 4),
        Collective("all-reduce", 8, 1, 2 * 7 / 8 * 8 * 4),
        Collective("all-to-all", 4, 1, 3 / 4 * 8 * 4),
        Collective("collective-permute", 2, 5, 5 * 8 * 4),
        Collective("reduce-scatter", 4, 1, 3 / 4 * 64 * 32 * 2),
    ]
    assert list(found.sent()) == [
        "all-gather",
        "reduce-scatter",
        "all-reduce",
        "all-to-all",
        "collective-permute",
    ]


def test_loop_of_unknown_length_is_said_to_be_uncounted():
    text = PROGRAM.replace("direction=LT", "direction=NE")
    assert traffic(text).uncounted_loops == 1
    assert traffic(text).sent()["collective-permute"] == 8 * 4
    known = text.replace("body=%body", 'body=%body, x={"known_trip_count":{"n":"3"}}')
    assert traffic(known).uncounted_loops == 0
    assert traffic(known).sent()["collective-permute"] == 3 * 8 * 4


def test_memory_is_read_from_the_buffer_assignment():
    text = textwrap.dedent("""\
        BufferAssignment:
        allocation 0: size 400, page 0, parameter 1, shape |f32[100]| at ShapeIndex {}:
        allocation 1: size 800, page 0, parameter 0, output shape is |f32[200]|, maybe-live-out:
        allocation 2: size 32, page 0, output shape is |(f32[200], f32[4])|, maybe-live-out:
        allocation 3: size 70000, page 0, preallocated-temp:
        allocation 4: size 512, page 0, thread-local:
        allocation 5: size 9999, color 1, page 0, preallocated-temp:
        """)
    assert read_buffers(text) == Memory(arguments=1200, results=32, temporaries=70000)


def gathered_product(topology: str) -> tuple[str, Memory, Memory]:
    """Returns a sharded product's text, and its memory before and after code generation."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(tpu_devices(topology)), ("fsdp",))
    place = lambda shape: jax.ShapeDtypeStruct(
        shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
    )
    step = jax.jit(lambda x, w: jnp.tanh(x @ jnp.tanh(w)), donate_argnums=0)
    lowered = step.lower(place((1024, 2048)), place((2048, 2048)))
    assigned = compile_until_assigned(lowered)
    found = lowered.compile().memory_analysis()
    compiled = Memory(
        arguments=found.argument_size_in_bytes,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
    )
    return assigned.text, assigned.memory, compiled


@pytest.mark.tpu_compiler
def test_program_is_settled_before_its_code_is_generated():
    text, assigned, compiled = run_isolated(
        gathered_product, "v5e:2x2", environment=dict(TPU_ENVIRONMENT)
    )
    assert traffic(text).sent() == {"all-gather": 3 / 4 * 2048 * 2048 * 2}
    assert assigned.arguments == compiled.arguments == (1024 + 2048) * 2048 * 2 / 4
    assert assigned.results == compiled.results == 0
    assert assigned.temporaries == pytest.approx(compiled.temporaries, abs=2**20)


@pytest.mark.tpu_compiler
def test_slice_that_the_compiler_refuses():
    with pytest.raises(ValueError, match=r"Topology layout .*3x3x3"):
        tpu_devices("v5p:3x3x3")
