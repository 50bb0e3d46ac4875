"""Compares the chunked gated delta rule of an exported model with the rule token by token."""

import pytest

from tests.hydrahead_jax.interop.with_torch import torch

# isort: split
from hydrahead_jax.interop.torch_model import delta_rule_hydrahead as rules


def inputs(T: int, H: int = 8):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, T, 3, H)
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    log_decay = -torch.rand(2, T, 3) * torch.tensor([0.01, 1.0, 16.0])
    return [q * H**-0.5, k, v, log_decay, 2 * torch.rand(2, T, 3), torch.randn(2, 3, H, H)]


def token_by_token(q, k, v, log_decay, beta, state):
    outputs = []
    for t in range(q.shape[1]):
        now = (x[:, t] for x in (q, k, v, log_decay, beta))
        out, state = rules.delta_rule_step(*now, state)
        outputs.append(out)
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("T", [2, 63, 64, 65, 200])
@pytest.mark.parametrize("group", [1, 2**14])
def test_outputs_states_and_gradients(monkeypatch, T, group):
    monkeypatch.setattr(rules, "GROUP_TOKENS", group)
    results = []
    for rule in (token_by_token, rules.delta_rule_chunked):
        arguments = [x.requires_grad_() for x in inputs(T)]
        out, state = rule(*arguments)
        (out.square().sum() + state.sum()).backward()
        results.append([out, state, *(x.grad for x in arguments)])
    for expected, actual in zip(*results, strict=True):
        bound = 2e-5 * max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(actual, expected, atol=bound, rtol=0)
