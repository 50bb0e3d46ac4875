"""Checks torch.export, torch.compile without a graph break, and tracing with fake tensors."""

import pytest

from tests.hydrahead_jax.interop.clients.tiny import (
    assert_close,
    load,
    logits,
    padded_batch,
    tokens,
)
from tests.hydrahead_jax.interop.with_torch import torch


def test_torch_export_for_any_number_of_rows(model):
    """The number of tokens is fixed: 80, more than a chunk of the delta rule."""
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(
        model,
        (),
        padded_batch() | {"use_cache": False},
        dynamic_shapes={"input_ids": {0: rows}, "attention_mask": {0: rows}, "use_cache": None},
        strict=False,
    )
    five = {"input_ids": tokens(5, 80), "attention_mask": torch.ones(5, 80, dtype=torch.long)}
    for batch in (padded_batch(), five):
        with torch.inference_mode():
            actual = program.module()(**batch, use_cache=False).logits
        assert_close(actual, logits(model, **batch))


def test_torch_compile_in_one_graph(model):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = logits(model, tokens(2, 80), use_cache=False)
    with torch.no_grad():
        actual = compiled(tokens(2, 80), use_cache=False).logits
    assert_close(actual, expected)
    torch._dynamo.reset()


def test_compiled_training_step(folder):
    batch = padded_batch()
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    plain, model = load(folder).train(), load(folder).train()
    expected = plain(**batch, use_cache=False).loss
    expected.backward()
    loss = torch.compile(model, backend="eager", fullgraph=True)(**batch, use_cache=False).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for weight, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(weight.grad, other.grad)
    torch._dynamo.reset()


def test_fake_tensors(folder):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = load(folder)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        batch = {name: mode.from_tensor(value) for name, value in padded_batch().items()}
        out = model(**batch, use_cache=False)
    assert out.logits.shape == (2, 80, 97)
