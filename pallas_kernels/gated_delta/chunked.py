"""Runs the gated delta rule by chunks in plain JAX, on any backend, with its own backward.

In a chunk that the state S enters, with the decays and decayed products of `chunks.Within`:

    E = V - from_entry K S                         what the state predicts wrongly
    U = (I + beta keys)^-1 (beta E)                what the tokens write
    O = scale from_entry Q S + queries U
    S' = through S + K^T (to_exit U)

Source: arXiv 2412.06464, section 3.3, with the inverse applied to beta E and to nothing else.
"""

import dataclasses
import functools

import jax

from pallas_kernels.gated_delta.chunked_backward import gradients
from pallas_kernels.gated_delta.chunks import Chunks, advance, cut, einsum, for_values, join, within
from pallas_kernels.gated_delta.problem import Problem
from pallas_kernels.varying import vary_alike


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkedBlocks:
    """Says how the plain JAX form cuts its work.

    Attributes:
      chunk: tokens of a chunk: 16 times a power of two, or fewer than 16.
    """

    chunk: int = 32

    def __post_init__(self):
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}; a chunk has at least one token")


def gated_delta_chunked(
    q_BTKH,
    k_BTKH,
    v_BTNP,
    log_decay_BTN,
    beta_BTN,
    state_BNHP,
    *,
    problem: Problem,
    blocks: ChunkedBlocks | None = None,
):
    """Computes `api.gated_delta` by chunks.

    Only the arguments are saved for the backward, which recomputes the states that enter the
    chunks; T / chunk of them live while it runs.
    """
    arrays = (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP)
    return _rule(problem.scale, (blocks or ChunkedBlocks()).chunk, *vary_alike(*arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rule(scale, chunk, q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP):
    sequences = (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN)
    chunks = Chunks(*cut(sequences, chunk=chunk, dtype=state_BNHP.dtype))

    def step(state_BNHP, inputs):
        chunk, inside = inputs
        after_BNHP, _, write_BNCP = advance(state_BNHP, chunk, inside)
        q_BNCH = for_values(chunk.q_ZBKCH, state_BNHP, axis=1)
        seen_BNCP = einsum("BNCH,BNHP->BNCP", q_BNCH, state_BNHP)
        within_BNCP = einsum("BNCD,BNDP->BNCP", inside.queries_ZBNCC, write_BNCP)
        return after_BNHP, scale * inside.from_entry_ZBNC[..., None] * seen_BNCP + within_BNCP

    state_BNHP, out_ZBNCP = jax.lax.scan(step, state_BNHP, (chunks, within(chunks, scale)))
    return join(out_ZBNCP, v_BTNP), state_BNHP


def _forward(scale, chunk, *arrays):
    return _rule(scale, chunk, *arrays), arrays


def _backward(scale, chunk, arrays, cotangents):
    return gradients(arrays, cotangents, scale=scale, chunk=chunk)


_rule.defvjp(_forward, _backward)
