"""Checks the calls of flash-linear-attention and causal-conv1d, on stand-ins."""

import itertools
import logging
import sys
import types

import pytest

from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.kernel_stand_ins import TAPS, ConvStandIn, FlaStandIn
from tests.hydrahead_jax.interop.with_torch import torch

# isort: split
from hydrahead_jax.interop.hf_config import to_hf_config
from hydrahead_jax.interop.torch_model import kernels_hydrahead as kernels
from hydrahead_jax.interop.torch_model.configuration_hydrahead import HydraHeadConfig
from hydrahead_jax.interop.torch_model.delta_rule_hydrahead import delta_rule
from hydrahead_jax.interop.torch_model.modeling_hydrahead import HydraHeadForCausalLM

B, N, H = 2, 3, 8
M = N * H


@pytest.fixture
def installed(monkeypatch):
    """Makes both packages look installed, and every tensor look as if it were on a GPU."""
    fla, conv = FlaStandIn(), ConvStandIn()
    monkeypatch.setitem(sys.modules, "fla", types.ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", types.ModuleType("fla.ops"))
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", fla)
    monkeypatch.setitem(sys.modules, "causal_conv1d", conv)
    as_if_on_gpu(monkeypatch)
    yield fla, conv
    kernels._functions.cache_clear()


def as_if_on_gpu(monkeypatch):
    same_dtype = lambda *tensors: len({x.dtype for x in tensors}) == 1
    monkeypatch.setattr(kernels, "_can_run", same_dtype)
    kernels._functions.cache_clear()


def rule_inputs(length: int, rows: int = B):
    generator = torch.Generator().manual_seed(length)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    q, k, v = (random(rows, length, N, H).bfloat16() for _ in range(3))
    k = torch.nn.functional.normalize(k.float(), dim=-1).bfloat16()
    log_decay, beta = -random(rows, length, N).abs(), random(rows, length, N).sigmoid()
    return q, k, v, log_decay, beta


def plain_rule(q, k, v, log_decay, beta, state):
    """Computes the rule in float32, which takes the path without kernels."""
    return delta_rule(q.float(), k.float(), v.float(), log_decay, beta, state)


def check_rule(actual, expected):
    """Compares both paths on the same bfloat16 inputs; the kernel rounds its output to bfloat16."""
    torch.testing.assert_close(actual[0].float(), expected[0], atol=2e-2, rtol=1e-2)
    assert actual[0].dtype == torch.bfloat16
    torch.testing.assert_close(actual[1], expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "kernel"), [(1, "recurrent"), (64, "recurrent"), (70, "chunk")])
@pytest.mark.parametrize("earlier", [False, True])
def test_delta_rule_of_prefill_and_decode(installed, length, kernel, earlier):
    state = torch.randn(B, N, H, H, generator=torch.Generator().manual_seed(7)) if earlier else None
    inputs = rule_inputs(length)
    check_rule(kernels.delta_rule(*inputs, state), plain_rule(*inputs, state))
    assert installed[0].called == [kernel]


def test_padding_neither_decays_nor_writes(installed):
    q, k, v, log_decay, beta = rule_inputs(70)
    log_decay[1, :13], beta[1, :13] = 0, 0
    _, state = kernels.delta_rule(q, k, v, log_decay, beta, None)
    alone = kernels.delta_rule(*(x[1:, 13:] for x in (q, k, v, log_decay, beta)), None)
    torch.testing.assert_close(state[1:], alone[1], atol=0, rtol=0)


@pytest.mark.parametrize("length", [40, 90])
def test_documents_of_packed_rows_are_kept_apart(installed, length):
    inputs = rule_inputs(length)
    documents_BT = torch.zeros(B, length, dtype=torch.long)
    documents_BT[0, 17:], documents_BT[0, 30:], documents_BT[1, 1:] = 1, 2, 1
    out, state = kernels.delta_rule(*inputs, None, documents_BT)
    for row, cuts in enumerate([(0, 17, 30, length), (0, 1, length)]):
        for start, end in itertools.pairwise(cuts):
            piece = [x[row : row + 1, start:end] for x in inputs]
            expected, last = plain_rule(*piece, None)
            actual = out[row : row + 1, start:end].float()
            torch.testing.assert_close(actual, expected, atol=2e-2, rtol=1e-2)
        torch.testing.assert_close(state[row : row + 1], last, atol=1e-5, rtol=1e-5)


def test_gradients_are_asked_of_the_kernel_that_has_them(installed):
    q, k, v, log_decay, beta = rule_inputs(8)
    kernels.delta_rule(q.requires_grad_(), k, v, log_decay, beta, None)
    with torch.no_grad():
        kernels.delta_rule(q, k, v, log_decay, beta, None)
    assert installed[0].called == ["chunk", "recurrent"]


def plain_convolution(x_BTM, tail_BMW, weight_MW, silu):
    if tail_BMW is None:
        tail_BMW = x_BTM.new_zeros(x_BTM.shape[0], M, TAPS - 1)
    x_BMT = torch.cat([tail_BMW, x_BTM.transpose(1, 2)], dim=-1)
    out = torch.nn.functional.conv1d(x_BMT, weight_MW[:, None], groups=M).transpose(1, 2)
    return torch.nn.functional.silu(out) if silu else out


def conv_inputs(length: int):
    generator = torch.Generator().manual_seed(length)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    return random(B, length, M), random(B, M, TAPS - 1), random(M, TAPS)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("length", "kernel"), [(1, "update"), (2, "whole"), (9, "whole")])
def test_convolution_of_prefill_and_decode(installed, silu, length, kernel):
    x_BTM, tail_BMW, weight_MW = conv_inputs(length)
    before = tail_BMW.clone()
    actual = kernels.causal_conv(x_BTM, tail_BMW, weight_MW, silu)
    expected = plain_convolution(x_BTM, before, weight_MW, silu)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(tail_BMW, before, atol=0, rtol=0)
    assert installed[1].called == [kernel]


def test_convolution_stops_at_documents(installed):
    x_BTM, _, weight_MW = conv_inputs(12)
    documents_BT = (torch.arange(12) >= 5).long()[None]
    actual = kernels.causal_conv(x_BTM, None, weight_MW, False, documents_BT)
    pieces = [plain_convolution(x, None, weight_MW, False) for x in x_BTM.split([5, 7], 1)]
    torch.testing.assert_close(actual, torch.cat(pieces, dim=1), atol=1e-5, rtol=0)


def test_float32_and_unequal_dtypes_take_the_plain_path(installed):
    q, k, v, log_decay, beta = rule_inputs(4)
    assert kernels.delta_rule(q.float(), k.float(), v.float(), log_decay, beta, None) is None
    assert kernels.delta_rule(q, k, v.half(), log_decay, beta, None) is None
    odd = (torch.randn(B, 9, 5), torch.randn(B, 5, TAPS - 1), torch.randn(5, TAPS))
    assert kernels.causal_conv(*odd, False) is None
    assert installed[0].called == installed[1].called == []


def test_a_cpu_tensor_takes_the_plain_path_in_silence(caplog):
    kernels._functions.cache_clear()
    with caplog.at_level(logging.DEBUG):
        assert kernels.delta_rule(*rule_inputs(4), None) is None
        assert kernels.causal_conv(*conv_inputs(4), False) is None
    assert not [r for r in caplog.records if "HydraHead" in r.message]
    assert kernels._functions.cache_info().currsize == 0


@pytest.fixture
def warnings_of(monkeypatch):
    said = []
    monkeypatch.setattr(kernels.logger, "warning", said.append)
    yield said
    kernels._functions.cache_clear()


def test_missing_packages_are_said_once_with_what_to_install(monkeypatch, warnings_of):
    for name in ("fla.ops.gated_delta_rule", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, name, None)
    as_if_on_gpu(monkeypatch)
    for _ in range(2):
        assert kernels.delta_rule(*rule_inputs(4), None) is None
        assert kernels.causal_conv(*conv_inputs(4), False) is None
    rule, conv = warnings_of
    assert "pip install -U flash-linear-attention" in rule and "gated delta rule" in rule
    assert "pip install -U causal-conv1d" in conv


COMMON = "scale=None, initial_state=None, output_final_state=False, cu_seqlens=None"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("with_new_names", "query, key, value, g, beta, scale=None, **kwargs"),
        ("with_head_first", f"q, k, v, g, beta, {COMMON}, head_first=True"),
        ("with_a_new_requirement", f"q, k, v, g, beta, A_log, {COMMON}"),
    ],
)
def test_a_changed_signature_is_said_and_not_called(
    installed, monkeypatch, warnings_of, name, parameters
):
    exec(f"def {name}({parameters}): raise AssertionError", made := {})
    monkeypatch.setattr(installed[0], "chunk_gated_delta_rule", made[name], raising=False)
    kernels._functions.cache_clear()
    assert kernels.delta_rule(*rule_inputs(70), None) is None
    [sentence] = warnings_of
    assert name in sentence and len(sentence) < 300


def small_model():
    torch.manual_seed(0)
    ours = toy.hybrid((1,), (0, 3), neg_eigval=True, conv_silu=True, log_scale_base=10.0)
    config = HydraHeadConfig(**to_hf_config(ours, "float32"), initializer_range=0.2)
    model = HydraHeadForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "conv" in name:
                weight.add_(0.3 * torch.randn(weight.shape))
    return model.to(torch.bfloat16).eval()


def run(model, batch, mask):
    """Returns the logits of a prefill and of a cached step."""
    with torch.inference_mode():
        first = model(batch[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
        last = model(batch[:, -1:], attention_mask=mask, cache=first.past_key_values)
    return torch.cat([first.logits, last.logits], dim=1).float()


@pytest.mark.parametrize("padding", [0, 13])
def test_whole_model_by_the_kernels(request, padding):
    """Covers prefill, a cached step, padding, packed rows, and the gradients."""
    model = small_model()
    batch = torch.randint(97, (2, 72), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(batch)
    mask[1, :padding] = 0
    positions = torch.cat([torch.arange(30), torch.arange(42)])[None]

    def all_ways():
        packed = model(batch, position_ids=positions.expand(2, -1), use_cache=False).logits
        return run(model, batch, mask), packed.float()

    def gradient():
        out = model.train()(batch, attention_mask=mask, labels=batch)
        return torch.autograd.grad(out.loss, model.model.embed_tokens.weight)[0].float()

    expected, expected_gradient = all_ways(), gradient()
    model.eval()
    fla, conv = request.getfixturevalue("installed")
    actual, actual_gradient = all_ways(), gradient()
    assert set(fla.called) == {"chunk", "recurrent"}
    assert set(conv.called) == {"whole", "update"}
    real = mask == 1
    for mine, theirs, rows in zip(actual, expected, (real, real | True), strict=True):
        error = (mine - theirs)[rows]
        assert error.square().mean() < 0.03**2 * theirs[rows].var()
    error = actual_gradient - expected_gradient
    assert error.square().mean() < 0.1**2 * expected_gradient.var()
