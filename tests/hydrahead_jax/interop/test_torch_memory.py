"""Measures the memory of a long prefill by an exported model, in a process of its own."""

import pytest

pytest.importorskip(
    "torch",
    reason="PyTorch is not installed in this environment: parity tests run in the Python 3.11 cell",
)
pytest.importorskip("transformers")

import multiprocessing
import resource

WIDTH, LAYERS, MIB = 256, 6, 2**20


def _peaks(padded: bool) -> list[int]:
    """Returns what prefills of 16384 and then 32768 tokens add to the peak memory."""
    import torch

    from hydrahead_jax.interop.hf_config import mixers_to_json
    from hydrahead_jax.interop.torch_model.configuration_hydrahead import HydraHeadConfig
    from hydrahead_jax.interop.torch_model.modeling_hydrahead import HydraHeadForCausalLM
    from tests.hydrahead_jax.interop import toy

    torch.set_num_threads(1)
    config = HydraHeadConfig(
        vocab_size=97,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        mixers=mixers_to_json(toy.hybrid((0, 3), *[()] * (LAYERS - 1)).mixers),
    )
    model = HydraHeadForCausalLM(config).eval()
    peaks = []
    for length in (256, 16384, 32768):
        mask = torch.ones(1, length, dtype=torch.long)
        mask[:, :9] = 0
        options = {"attention_mask": mask} if padded else {}
        with torch.inference_mode():
            ids = torch.zeros(1, length, dtype=torch.long)
            model.model(ids, use_cache=True, **options)
        peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return [peak - peaks[0] for peak in peaks[1:]]


@pytest.mark.parametrize("padded", [False, True])
def test_32k_prefill_keeps_no_hidden_states_and_no_square_mask(padded):
    """All layers' hidden states would take 224 MiB more, a mask of [T, S] at least 1024 MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        half, whole = pool.apply(_peaks, (padded,))
    assert whole < 450 * MIB
    assert whole - half < 240 * MIB
