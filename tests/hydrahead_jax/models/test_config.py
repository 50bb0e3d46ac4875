"""Checks model configs: presets, and what they refuse."""

import math

import jax
import pytest

from hydrahead_jax.config import QWEN3_SIZES, FullAttention, Hydra, HydraChoices, qwen3
from hydrahead_jax.models import abstract_params
from tests.toy_config import toy_config

PARAMETERS = {
    "0.6b": 596_049_920,
    "1.7b": 1_720_574_976,
    "4b": 4_022_468_096,
    "8b": 8_190_735_360,
    "14b": 14_768_307_200,
    "32b": 32_762_123_264,
}
FULL = FullAttention()


@pytest.mark.parametrize("size", QWEN3_SIZES)
def test_qwen3_presets_have_the_published_number_of_parameters(size):
    leaves = jax.tree.leaves(abstract_params(qwen3(size)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == PARAMETERS[size]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 0}, "kv_heads=0 must be 1 or more"),
        ({"embed": -8}, "embed=-8 must be 1 or more"),
        ({"rope_theta": 0.0}, "rope_theta=0.0 must be positive and finite"),
        ({"rms_eps": math.nan}, "rms_eps=nan must be positive and finite"),
        ({"kv_heads": 3}, "4 query heads are not a multiple of 3 KV heads"),
        ({"head_dim": 5}, "head_dim=5 must be even"),
        ({"mixers": (FULL, Hydra(fa_heads=(2, 1)))}, r"layer 1: fa_heads=\(2, 1\) must be sorted"),
        (
            {"mixers": (Hydra(fa_heads=(4,)),)},
            r"layer 0: fa_heads=\(4,\) must be sorted, unique and below 4",
        ),
        ({"mixers": (Hydra(fa_heads=(-1, 2)),)}, r"layer 0: fa_heads=\(-1, 2\) must be"),
    ],
)
def test_impossible_models_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        toy_config(**change)


def test_unknown_sizes_and_impossible_choices_are_refused():
    with pytest.raises(ValueError, match=r"no Qwen3 of size '2b'; there are 0\.6b, 1\.7b"):
        qwen3("2b")
    for base in (1.0, math.nan):
        with pytest.raises(ValueError, match=f"log_scale_base={base} must be above 1"):
            HydraChoices(log_scale_base=base)
