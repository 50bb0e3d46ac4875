"""Runs both recurrences that the backward needs in one launch.

Neither reads what the other writes, and either alone leaves most of a GPU idle: it has two
programs for each head of each sequence.
"""

import functools

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.gpu import blocks, pipeline
from pallas_kernels.gated_delta.gpu.blocks import CHUNK, HALF, HEAD
from pallas_kernels.gated_delta.gpu.intra import Intra
from pallas_kernels.gated_delta.gpu.pipeline import STAGES
from pallas_kernels.gated_delta.gpu.reverse import Cotangents, reverse
from pallas_kernels.gated_delta.gpu.visit import Visited, visit

VISIT, REVERSE = 0, 1
VISIT_COPIES, REVERSE_COPIES = 5, 7


def sweep(
    q_BTKH,
    k_BTKH,
    v_BTNP,
    dout_BTNP,
    gates_BNZXC,
    intra: Intra,
    state_BNPH,
    dstate_BNPH,
    *,
    interpret,
) -> tuple[Visited, Cotangents]:
    B, N, Z = gates_BNZXC.shape[:3]
    states = ((B, N, Z, HEAD, HEAD), jnp.bfloat16)
    parts = ((B, N, Z, 2, HEAD, CHUNK), jnp.bfloat16)
    results = blocks.kernel(
        functools.partial(_body, group=N // k_BTKH.shape[2], chunks=Z, interpret=bool(interpret)),
        *(q_BTKH, k_BTKH, v_BTNP, dout_BTNP, gates_BNZXC, *intra, state_BNPH, dstate_BNPH),
        name="gated_delta_sweeps",
        grid=pipeline.grid(gates_BNZXC) | dict(direction=2),
        outputs=[states, parts, states, parts, (dstate_BNPH.shape, jnp.float32)],
        scratch=dict(
            **pipeline.buffers(copies=REVERSE_COPIES),
            q_SCH=blocks.operand(STAGES, CHUNK, HEAD),
            scores_SCC=blocks.operand(STAGES, CHUNK, CHUNK),
            state_PH=blocks.operand(HALF, HEAD),
            parts_XPC=blocks.operand(2, HALF, CHUNK),
            visit_full=plgpu.Barrier(num_arrivals=VISIT_COPIES, num_barriers=STAGES),
        ),
        warpgroups=2,
        interpret=interpret,
    )
    return Visited(*results[:2]), Cotangents(*results[2:])


def _body(
    q,
    k,
    v,
    dout,
    gates,
    inverse,
    scores,
    state,
    dstate,
    states,
    writes,
    dstates,
    derrors,
    dinitial,
    *,
    visit_full,
    **settings_and_buffers,
):
    direction = lax.axis_index("direction")

    @pl.when(direction == VISIT)
    def _forwards():
        changed = settings_and_buffers | dict(full=visit_full)
        visit(k, v, gates, inverse, state, states, writes, **changed)

    @pl.when(direction == REVERSE)
    def _backwards():
        reverse(
            *(k, dout, gates, inverse, dstate, q, scores, dstates, derrors, dinitial),
            **settings_and_buffers,
        )
