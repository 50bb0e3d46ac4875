"""Measures the memory of a long prefill by an exported model."""

import dataclasses

import pytest

from hydrahead_jax.interop.hf_config import to_hf_config
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.with_torch import torch

WIDTH, LAYERS, MIB = 256, 6, 2**20


def _peak_bytes(model, length: int, padded: bool, **options) -> int:
    """Returns the most bytes that tensors of a prefill take, temporaries of operators included."""
    if padded:
        options["attention_mask"] = torch.ones(1, length, dtype=torch.long)
        options["attention_mask"][:, :9] = 0
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        model.model(torch.zeros(1, length, dtype=torch.long), use_cache=True, **options)
    events = profile.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("padded", [False, True])
def test_32k_prefill_keeps_no_hidden_states_and_no_square_mask(padded):
    """A prefill holds 198 MiB; all layers' hidden states take 192 more, a mask [T, S] 1024."""
    from hydrahead_jax.interop.torch_model.configuration_hydrahead import HydraHeadConfig
    from hydrahead_jax.interop.torch_model.modeling_hydrahead import HydraHeadForCausalLM

    ours = toy.hybrid((0, 3), *[()] * (LAYERS - 1))
    ours = dataclasses.replace(ours, embed=WIDTH, mlp=WIDTH)
    model = HydraHeadForCausalLM(HydraHeadConfig(**to_hf_config(ours, "float32"))).eval()
    assert _peak_bytes(model, 32768, padded) < 210 * MIB
    kept = _peak_bytes(model, 16384, padded, output_hidden_states=True)  # 179 MiB
    assert kept > 105 * MIB, "what the bound is there to catch is not counted"
