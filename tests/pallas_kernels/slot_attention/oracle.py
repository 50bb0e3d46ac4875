"""Computes slot attention in float64, from the papers and nothing in the project.

With j = t - W: K_t = diag(a_j) K_{t-1} + (1 - a_j) k_j^T, V_t likewise, o_t = softmax(K_t q_t /
sqrt(H))^T V_t (arXiv 2409.07146, Eq 3 and 4, with the shift of arXiv 2510.07019).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.pallas_kernels.slot_attention.cases import Case, Inputs


class Results(NamedTuple):
    """Holds outputs, final slots, and the gradients of their product with the cotangents."""

    out: np.ndarray
    lse: np.ndarray
    k_slots: np.ndarray
    v_slots: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    dlog_forget: np.ndarray
    dk_slots: np.ndarray
    dv_slots: np.ndarray
    dk_waiting: np.ndarray
    dv_waiting: np.ndarray
    dlog_forget_waiting: np.ndarray


def cotangents(inputs: Inputs):
    """Returns cotangents of the outputs and final slots, rounded to the dtypes of those."""
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)
    lse = jax.ShapeDtypeStruct(inputs.q_BTNH.shape[:3], jnp.float32)
    return draw(inputs.q_BTNH), draw(lse), draw(inputs.k_slots_BKMH), draw(inputs.v_slots_BKMH)


def float64_results(inputs: Inputs, case: Case) -> Results:
    """Computes the results that every implementation is compared with."""
    wide = [np.asarray(x, np.float64) for x in (*inputs[:9], *cotangents(inputs))]
    plans = [_plan(np.asarray(w), np.asarray(s)) for w, s in zip(*inputs[9:], strict=True)]
    plan = [np.stack(x) for x in zip(*plans, strict=True)]
    heads = np.array(case.heads)

    def rows(*arrays):
        return jax.vmap(lambda plan, *x: _row(plan, heads, case.sinks, *x))(plan, *arrays)

    def both(arrays, bars):
        outputs, pull = jax.vjp(rows, *arrays)
        return *outputs, *pull(bars)

    with jax.enable_x64(True):
        return Results(*map(np.asarray, jax.jit(both)(tuple(wide[:9]), tuple(wide[9:]))))


def _plan(waits_W: np.ndarray, ids_T: np.ndarray):
    """Returns for each step the position that is written, of waiting ones and tokens, or -1.

    Also whether the slots are emptied before, whether the query reads, and whether slots hold
    anything.
    """
    segment, last, held = 0, max(np.flatnonzero(ids_T), default=-1), False
    owners = [("start", 0) if waits else None for waits in waits_W]
    document = 0
    source, empties, reads, holds = [], [], [], []
    for t, own in enumerate(ids_T):
        new = own not in (0, segment) and segment != 0
        document, segment = document + new, own or segment
        held = held and not new
        owners.append(("token", document) if own else None)
        owner = owners[t]
        is_written = owner is not None and owner[1] == document and t <= last
        held = held or is_written
        source.append(t if is_written else -1)
        empties.append(new)
        reads.append(own != 0)
        holds.append(held)
    return tuple(map(np.array, (source, empties, reads, holds)))


def _row(plan, heads, sinks, q_TNH, k_TKH, v_TKH, g_TKM, K_KMH, V_KMH, k_WKH, v_WKH, g_WKM):
    source_T, empties_T, reads_T, holds_T = plan
    k, v, g = (jnp.concatenate(x) for x in ((k_WKH, k_TKH), (v_WKH, v_TKH), (g_WKM, g_TKM)))
    scale = q_TNH.shape[-1] ** -0.5

    def step(slots, inputs):
        q_NH, source, empties, reads, holds = inputs
        K, V = (jnp.where(empties, 0.0, x) for x in slots)
        a_KM1 = jnp.exp(g[source])[..., None]
        mix = lambda S, x_KH: jnp.where(source < 0, S, a_KM1 * S + (1 - a_KM1) * x_KH[:, None])
        K, V = mix(K, k[source]), mix(V, v[source])
        logits_NM = scale * jnp.einsum("NH,NMH->NM", q_NH, K[heads])
        out_NH = jnp.einsum("NM,NMH->NH", jax.nn.softmax(logits_NM), V[heads])
        sees = reads & (holds | sinks)
        lse_N = jax.nn.logsumexp(logits_NM, axis=-1)
        return (K, V), (jnp.where(sees, out_NH, 0.0), jnp.where(sees, lse_N, -jnp.inf))

    inputs = (q_TNH, source_T, empties_T, reads_T, holds_T)
    (K, V), (out_TNH, lse_TN) = jax.lax.scan(step, (K_KMH, V_KMH), inputs)
    return out_TNH, lse_TN, K, V
