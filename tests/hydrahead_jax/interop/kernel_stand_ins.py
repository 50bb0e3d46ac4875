"""Stands in for flash-linear-attention and causal-conv1d.

The stand-ins have the signatures of the real kernels and check what those check. They compute
token by token in float64.
"""

import itertools
import types

from tests.hydrahead_jax.interop.with_torch import torch

TAPS = 4


def slow_rule(q, k, v, g, beta, scale, state):
    """Computes the delta rule for one sequence [T, N, H], token by token."""
    out = []
    for t in range(q.shape[0]):
        state = state * g[t].exp()[:, None, None]
        error = v[t] - torch.einsum("nkv,nk->nv", state, k[t])
        state = state + torch.einsum("nk,nv->nkv", k[t], beta[t][:, None] * error)
        out.append(torch.einsum("nkv,nk->nv", state, q[t] * scale))
    return torch.stack(out), state


def stand_in_rule(q, k, v, g, beta, scale, initial_state, cu_seqlens):
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert g.dtype == beta.dtype == torch.float32
    assert g.shape == beta.shape == q.shape[:3]
    if cu_seqlens is None:
        spans = [(row, slice(None)) for row in range(q.shape[0])]
    else:
        assert q.shape[0] == 1 and cu_seqlens.dtype == torch.long
        ends = cu_seqlens.tolist()
        assert ends[0] == 0 and ends[-1] == q.shape[1]
        spans = [(0, slice(*pair)) for pair in itertools.pairwise(ends)]
    if initial_state is None:
        initial_state = q.new_zeros(len(spans), *q.shape[2:], v.shape[-1], dtype=torch.float32)
    assert initial_state.dtype == torch.float32 and len(initial_state) == len(spans)
    out, states = torch.zeros_like(v), []
    for (row, span), state in zip(spans, initial_state, strict=True):
        inputs = [x[row, span].double() for x in (q, k, v, g, beta)]
        piece, state = slow_rule(*inputs, scale, state.double())
        out[row, span] = piece.to(v.dtype)
        states.append(state.float())
    return out, torch.stack(states)


class FlaStandIn(types.ModuleType):
    """Replaces fla-core 0.6.0 with its signatures."""

    def __init__(self):
        super().__init__("fla.ops.gated_delta_rule")
        self.called = []

    def chunk_gated_delta_rule(
        self, q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False,
        use_qk_l2norm_in_kernel=False, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False,
        state_v_first=False, cu_seqlens=None, cu_seqlens_cpu=None, chunk_indices=None,
        cp_context=None, **kwargs,
    ):  # fmt: skip
        self.called.append("chunk")
        out, state = stand_in_rule(q, k, v, g, beta, scale, initial_state, cu_seqlens)
        return out, state if output_final_state else None

    def fused_recurrent_gated_delta_rule(
        self, q, k, v, g=None, gk=None, gv=None, beta=None, scale=None, initial_state=None,
        output_final_state=False, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False,
        A_log=None, dt_bias=None, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False,
        state_v_first=False, cu_seqlens=None, **kwargs,
    ):  # fmt: skip
        self.called.append("recurrent")
        out, state = stand_in_rule(q, k, v, g, beta, scale, initial_state, cu_seqlens)
        return out, state if output_final_state else None


class ConvStandIn(types.ModuleType):
    """Replaces causal-conv1d 1.6 with its signatures and the checks of its C++."""

    def __init__(self):
        super().__init__("causal_conv1d")
        self.called = []

    def causal_conv1d_fn(
        self, x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
        final_states_out=None, activation=None,
    ):  # fmt: skip
        self.called.append("whole")
        rows, channels, length = x.shape
        assert x.stride(1) == 1 and channels % 8 == 0 and activation in (None, "silu")
        assert weight.shape == (channels, TAPS) and bias is None
        assert seq_idx is None or initial_states is None
        if initial_states is None:
            initial_states = x.new_zeros(rows, channels, TAPS - 1)
        else:
            assert initial_states.shape == (rows, channels, TAPS - 1)
            assert initial_states.stride(1) == 1 and initial_states.dtype == x.dtype
        if seq_idx is not None:
            assert seq_idx.dtype == torch.int32 and seq_idx.shape == (rows, length)
            assert seq_idx.is_contiguous()
        out = torch.zeros_like(x)
        for row in range(rows):
            for t in range(length):
                for tap in range(TAPS):
                    source = t - (TAPS - 1) + tap
                    if source >= 0:
                        if seq_idx is not None and seq_idx[row, source] != seq_idx[row, t]:
                            continue
                        value = x[row, :, source]
                    else:
                        value = initial_states[row, :, source]
                    out[row, :, t] += value * weight[:, tap]
        return torch.nn.functional.silu(out) if activation else out

    def causal_conv1d_update(
        self, x, conv_state, weight, bias=None, activation=None, cache_seqlens=None,
        conv_state_indices=None,
    ):  # fmt: skip
        self.called.append("update")
        window = torch.cat([conv_state, x[..., None]], dim=-1)
        conv_state.copy_(window[..., 1:])
        out = (window * weight).sum(-1)
        return torch.nn.functional.silu(out) if activation else out
