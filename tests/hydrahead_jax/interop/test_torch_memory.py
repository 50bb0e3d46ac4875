"""Measures the memory of a long prefill by an exported model, in a process of its own."""

import dataclasses
import multiprocessing
import re
from pathlib import Path

import pytest

from hydrahead_jax.interop.hf_config import to_hf_config
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.with_torch import torch

WIDTH, LAYERS, MIB = 256, 6, 2**20


def _peaks(padded: bool) -> list[int]:
    """Returns what prefills of 16384 and then 32768 tokens add to the peak memory."""
    from hydrahead_jax.interop.torch_model.configuration_hydrahead import HydraHeadConfig
    from hydrahead_jax.interop.torch_model.modeling_hydrahead import HydraHeadForCausalLM

    torch.set_num_threads(1)
    ours = toy.hybrid((0, 3), *[()] * (LAYERS - 1))
    ours = dataclasses.replace(ours, embed=WIDTH, mlp=WIDTH)
    model = HydraHeadForCausalLM(HydraHeadConfig(**to_hf_config(ours, "float32"))).eval()
    peaks = []
    for length in (256, 16384, 32768):
        mask = torch.ones(1, length, dtype=torch.long)
        mask[:, :9] = 0
        options = {"attention_mask": mask} if padded else {}
        with torch.inference_mode():
            ids = torch.zeros(1, length, dtype=torch.long)
            model.model(ids, use_cache=True, **options)
        status = Path("/proc/self/status").read_text()  # unlike getrusage, without the parent
        peaks.append(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]))
    return [peak - peaks[0] for peak in peaks[1:]]


@pytest.mark.parametrize("padded", [False, True])
def test_32k_prefill_keeps_no_hidden_states_and_no_square_mask(padded):
    """All layers' hidden states would take 224 MiB more, a mask of [T, S] at least 1024 MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        half, whole = pool.apply(_peaks, (padded,))
    assert whole < 450 * MIB
    assert whole - half < 240 * MIB
