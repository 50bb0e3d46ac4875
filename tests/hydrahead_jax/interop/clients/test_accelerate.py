"""Runs exports under accelerate: layers on the CPU, on the disk, and loaded module by module."""

import pytest

from tests.hydrahead_jax.interop.clients.tiny import (
    assert_close,
    load,
    logits,
    new_tokens,
    padded_batch,
)
from tests.hydrahead_jax.interop.with_torch import torch

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture(scope="module")
def expected(folder):
    model = load(folder)
    return logits(model, **padded_batch()), new_tokens(model, padded_batch(), 8)


def check(model, expected):
    expected_logits, expected_tokens = expected
    assert_close(logits(model, **padded_batch()), expected_logits)
    assert new_tokens(model, padded_batch(), 8) == expected_tokens


def test_cpu_offload(model, expected):
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    check(model, expected)


def test_disk_offload(model, expected, tmp_path):
    accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    check(model, expected)


def test_device_map_with_layers_on_the_disk(folder, expected, tmp_path):
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    layers = ("disk", "cpu", "disk", "disk", "disk")
    places |= {f"model.layers.{index}": place for index, place in enumerate(layers)}
    model = load(folder, device_map=places, offload_folder=str(tmp_path))
    assert model.model.layers[0].mlp.up_proj.weight.device.type == "meta"
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "cpu"
    check(model, expected)


def test_device_map_that_splits_no_layer(folder, expected):
    model = load(folder, device_map="cpu")
    assert "HydraHeadLayer" in model._no_split_modules
    sizes = accelerate.utils.infer_auto_device_map(
        model,
        max_memory={"cpu": "60KB", "disk": "1GB"},
        no_split_module_classes=model._no_split_modules,
    )
    assert not any(name.count(".") > 2 for name in sizes)
    check(model, expected)


def test_a_hook_on_every_module_sees_its_own_weights(model, expected):
    """The hooks load a module's weights around its own forward only."""
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            hook = accelerate.hooks.AlignDevicesHook(
                execution_device="cpu",
                offload=True,
                weights_map=dict(module.named_parameters(recurse=False)),
            )
            accelerate.hooks.add_hook_to_module(module, hook)
    check(model, expected)


def test_empty_weights_then_load(folder, expected):
    from accelerate import init_empty_weights

    with init_empty_weights():
        empty = type(load(folder))(load(folder).config)
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(load(folder).state_dict())
    assert_close(logits(filled.eval(), **padded_batch()), expected[0])
