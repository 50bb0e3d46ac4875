"""Checks what slot attention and the native hybrid promise beside the common tests of all ops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import native_hybrid_attention, slot_attention, slot_attention_step
from tests.pallas_kernels.slot_attention.cases import Case, make_inputs
from tests.pallas_kernels.slot_attention.oracle import float64_results
from tests.pallas_kernels.slot_attention.suite import state_of
from tests.tolerances import error_ratio

T = 40


def options(case: Case) -> dict:
    return {"kv_head_of_query": case.heads, "sinks": case.sinks}


@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize("shift", [0, 1, 5, T + 1])
@pytest.mark.parametrize("name", ["chunked", "reference"])
def test_a_state_handed_over_at_any_point_equals_one_pass(name, shift, sinks):
    """The other part is padding, so that every split shares one compiled function."""
    case = Case(name="split", length=T, shift=shift, segments="packed", state=sinks, sinks=sinks)
    inputs = make_inputs(case)

    @jax.jit
    def two_passes(split):
        before_T = jnp.arange(T) < split
        # The second part lies at the start of its row: padding takes up positions.
        turn = lambda x, by: jnp.roll(x, by, axis=1)
        ids_BT = jnp.where(before_T, inputs.segment_ids_BT, 0)
        run = lambda tokens, state, ids_BT: slot_attention(
            *tokens, shift=shift, state=state, segment_ids_BT=ids_BT, implementation=name,
            **options(case),
        )  # fmt: skip
        out_BTNH, lse_BTN, state = run(inputs[:4], state_of(inputs), ids_BT)
        ids_BT = turn(jnp.where(before_T, 0, inputs.segment_ids_BT), -split)
        late_BTNH, late_BTN, state = run([turn(x, -split) for x in inputs[:4]], state, ids_BT)
        out_BTNH = jnp.where(before_T[:, None, None], out_BTNH, turn(late_BTNH, split))
        lse_BTN = jnp.where(before_T[:, None], lse_BTN, turn(late_BTN, split))
        return out_BTNH, lse_BTN, state

    exact = float64_results(inputs, case)
    for split in range(0, T + 1, 3):
        out_BTNH, lse_BTN, state = two_passes(split)
        assert error_ratio(out_BTNH, exact.out) < 1e-6
        np.testing.assert_allclose(lse_BTN, exact.lse, rtol=1e-5, atol=1e-5)
        assert error_ratio(state.k_slots_BKMH, exact.k_slots) < 1e-6
        assert error_ratio(state.v_slots_BKMH, exact.v_slots) < 1e-6


@pytest.mark.parametrize("shift", [0, 1, 5, T + 1])
def test_steps_equal_a_sequence(shift):
    case = Case(name="steps", length=T, shift=shift)
    inputs = make_inputs(case)
    step = jax.jit(lambda *x: slot_attention_step(*x, **options(case)))
    state, results = state_of(inputs), []
    for t in range(T):
        *result, state = step(*(x[:, t] for x in inputs[:4]), state)
        results.append(result)
    out_TBNH, lse_TBN = map(jnp.stack, zip(*results, strict=True))
    exact = float64_results(inputs, case)
    assert error_ratio(jnp.swapaxes(out_TBNH, 0, 1), exact.out) < 1e-6
    assert error_ratio(jnp.swapaxes(lse_TBN, 0, 1), exact.lse) < 1e-6
    assert error_ratio(state.k_slots_BKMH, exact.k_slots) < 1e-6


def one_softmax(inputs, window: int, heads: tuple[int, ...]) -> np.ndarray:
    """Computes the output of native hybrid attention in float64: one softmax over all logits."""
    q, k, v, log_forget = (np.asarray(x, np.float64) for x in inputs[:4])
    B, length, N, H = q.shape
    M = log_forget.shape[-1]
    out = np.zeros_like(q)
    for b in range(B):
        for n in range(N):
            kn, vn, keep = k[b, :, heads[n]], v[b, :, heads[n]], np.exp(log_forget[b, :, heads[n]])
            slots_k, slots_v = np.zeros((M, H)), np.zeros((M, H))
            for t in range(length):
                if (j := t - window) >= 0:
                    a = keep[j][:, None]
                    slots_k = a * slots_k + (1 - a) * kn[j]
                    slots_v = a * slots_v + (1 - a) * vn[j]
                seen = slice(max(0, t - window + 1), t + 1) if window else slice(0, 0)
                logits = np.concatenate([slots_k, kn[seen]]) @ q[b, t, n] / np.sqrt(H)
                p = np.exp(logits - logits.max())
                out[b, t, n] = p @ np.concatenate([slots_v, vn[seen]]) / p.sum()
    return out


@pytest.mark.parametrize("window", [0, 1, 5, T - 1, T, 2 * T])
def test_window_and_slots_are_one_softmax(window):
    case = Case(name="one softmax", length=T, state=False)
    inputs = make_inputs(case)
    run = lambda *x: native_hybrid_attention(*x, window=window, kv_head_of_query=case.heads)[0]
    assert error_ratio(jax.jit(run)(*inputs[:4]), one_softmax(inputs, window, case.heads)) < 1e-6


def test_a_window_over_everything_is_softmax_with_null_keys():
    case = Case(name="null keys", length=T, state=False, heads=(0, 1))
    q, k, v, log_forget = make_inputs(case)[:4]
    out_BTNH, lse_BTN, *_ = native_hybrid_attention(q, k, v, log_forget, window=T)
    logits_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q, k, precision="highest") / 4
    logits_BNTS = jnp.where(jnp.tril(jnp.ones((T, T), bool)), logits_BNTS, -jnp.inf)
    logits = jnp.pad(logits_BNTS, [(0, 0)] * 3 + [(0, case.slots)])
    v_BSNH = jnp.pad(v, [(0, 0), (0, case.slots), (0, 0), (0, 0)])
    shares = jax.nn.softmax(logits)
    wanted_BTNH = jnp.einsum("BNTS,BSNH->BTNH", shares, v_BSNH, precision="highest")
    np.testing.assert_allclose(out_BTNH, wanted_BTNH, atol=1e-6)
    lse = jnp.swapaxes(jax.nn.logsumexp(logits, axis=-1), 1, 2)
    np.testing.assert_allclose(lse_BTN, lse, atol=1e-6)


def test_what_does_not_fit_is_refused():
    inputs = make_inputs(Case(name="refused", length=4))
    with pytest.raises(ValueError, match="shift=-1; a token waits 0 positions or more"):
        slot_attention(*inputs[:4], shift=-1)
    with pytest.raises(ValueError, match=r"state.k_waiting_BWKH has shape \(2, 5, 2, 16\)"):
        slot_attention(*inputs[:4], shift=4, state=state_of(inputs))
    with pytest.raises(ValueError, match="window=-1; a window sees 0 tokens or more"):
        native_hybrid_attention(*inputs[:4], window=-1)
