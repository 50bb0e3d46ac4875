"""Computes the vectors of a chunk that the Hopper kernels multiply with."""

import jax.numpy as jnp

from pallas_kernels.gated_delta.gpu.blocks import CHUNK

SUM, BETA, BETA_ENTRY, OUT_ENTRY, EXIT = range(5)
GATES = 5


def chunk_gates(log_decay_BTN, beta_BTN, *, scale):
    """Returns five vectors over each chunk, [B, N, Z, X, C] float32.

    For each token of each chunk X is:

      SUM: the sum of the chunk's log decays through this token.
      BETA: its write strength.
      BETA_ENTRY: BETA times the decay since the state that enters the chunk.
      OUT_ENTRY: `scale` times that decay.
      EXIT: the decay after it, up to the end of the chunk.
    """
    B, T, N = beta_BTN.shape
    by_chunk = lambda x: jnp.moveaxis(x, 2, 1).reshape(B, N, T // CHUNK, CHUNK)
    sum_BNZC, beta_BNZC = jnp.cumsum(by_chunk(log_decay_BTN), axis=-1), by_chunk(beta_BTN)
    entry_BNZC = jnp.exp(sum_BNZC)
    exit_BNZC = jnp.exp(sum_BNZC[..., -1:] - sum_BNZC)
    gates = (sum_BNZC, beta_BNZC, beta_BNZC * entry_BNZC, scale * entry_BNZC, exit_BNZC)
    return jnp.stack(gates, axis=3)
