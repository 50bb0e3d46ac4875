"""Checks LoRA adapters of PEFT on an exported model."""

import pytest

from tests.hydrahead_jax.interop.clients.tiny import (
    assert_close,
    load,
    logits,
    padded_batch,
    tokens,
)
from tests.hydrahead_jax.interop.with_torch import torch

peft = pytest.importorskip("peft", reason="peft is not installed: LoRA tests need it")

# transformers 5.24 has renamed what peft asks for, and keeps the older names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "g_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {"all-linear": "all-linear", "by name": NAMES, "pattern": r".*gdn\.(a|b)_proj"}


def adapted(model, targets, **options):
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options
    )
    return peft.get_peft_model(model, config)


def randomise(model):
    """Makes adapters random, so that they have an effect; they begin at zero."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05, generator=generator)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_a_new_adapter_changes_nothing_and_learns(model, targets):
    expected = logits(model, **padded_batch())
    lora = adapted(model, targets)
    torch.testing.assert_close(logits(lora, **padded_batch()), expected, atol=0, rtol=0)
    lora.train()(**padded_batch(), labels=padded_batch()["input_ids"]).loss.backward()
    grads = {name: weight.grad for name, weight in lora.named_parameters()}
    for name, grad in grads.items():
        if "lora_B" in name:
            assert grad is not None and grad.abs().max() > 0, name
        if "lora_" not in name:
            assert grad is None, name


def test_all_linear_reaches_every_projection(model):
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    lora = adapted(model, "all-linear").base_model.model
    with_adapter = {name for name, module in lora.named_modules() if hasattr(module, "lora_A")}
    assert with_adapter == linear


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_merged_weights_equal_the_adapter(model, targets):
    plain = logits(model, **padded_batch())
    lora = adapted(model, targets)
    randomise(lora)
    expected = logits(lora.eval(), **padded_batch())
    assert (expected - plain).abs().max() > 1e-3
    merged = lora.merge_and_unload()
    # W + B A rounds once, W x + B (A x) twice.
    torch.testing.assert_close(logits(merged, **padded_batch()), expected, atol=2e-4, rtol=0)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_a_saved_adapter_loads_again_and_generates(folder, model, tmp_path):
    lora = adapted(model, "all-linear").eval()
    randomise(lora)
    expected = logits(lora, **padded_batch())
    lora.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load(folder), tmp_path)
    torch.testing.assert_close(logits(again, **padded_batch()), expected, atol=0, rtol=0)
    prompt = tokens(1, 30)
    options = {"max_new_tokens": 12}
    cached = again.generate(input_ids=prompt, **options)
    assert cached.tolist() == again.generate(input_ids=prompt, use_cache=False, **options).tolist()


def test_base_weights_in_bfloat16_keep_their_float32_parameters(folder):
    lora = adapted(load(folder, dtype=torch.bfloat16), "all-linear")
    gdn = lora.base_model.model.model.layers[0].self_attn.gdn
    assert {gdn.a_log.dtype, gdn.dt_bias.dtype, gdn.gamma.dtype} == {torch.float32}
    loss = lora.train()(tokens(2, 70), labels=tokens(2, 70)).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_gradient_checkpointing_with_a_frozen_base(model):
    """With all base weights frozen, inputs must be made to ask for gradients."""
    lora = adapted(model, "all-linear").train()
    randomise(lora)

    def grads():
        lora.zero_grad()
        lora(**padded_batch(), labels=padded_batch()["input_ids"]).loss.backward()
        return {n: w.grad.clone() for n, w in lora.named_parameters() if w.grad is not None}

    expected = grads()
    lora.gradient_checkpointing_enable()
    lora.enable_input_require_grads()
    actual = grads()
    assert actual.keys() == expected.keys()
    for name, grad in actual.items():
        assert_close(grad, expected[name])
