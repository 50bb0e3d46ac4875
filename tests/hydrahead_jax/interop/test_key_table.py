"""Checks that the key table inverts itself, covers every parameter, and knows every Qwen3 size."""

import math

import jax
import numpy as np
import pytest

from hydrahead_jax.config import QWEN3_SIZES, qwen3
from hydrahead_jax.interop.hf_config import to_hf_config
from hydrahead_jax.interop.key_table import get_param, key_table, set_param, weight_shapes
from hydrahead_jax.models import abstract_params
from tests.hydrahead_jax.interop import toy

MODELS = {"tied": toy.TIED_AND_UNTIED[0], "untied": toy.TIED_AND_UNTIED[1], **toy.HYBRIDS}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_saving_and_loading_returns_every_number_to_its_place(config):
    params = toy.counted_params(config)
    loaded = {}
    for row in key_table(config):
        weight = row.layout.save(*(get_param(params, path) for path in row.paths))
        for path, array in zip(row.paths, row.layout.load(weight), strict=True):
            set_param(loaded, path, array)
    assert toy.same_tree(loaded, params)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_each_parameter_and_each_name_stands_in_one_row(config):
    rows = key_table(config)
    paths = [path for row in rows for path in row.paths]
    assert len(set(paths)) == len(paths) == len(jax.tree.leaves(abstract_params(config)))
    assert len({row.name for row in rows}) == len(rows)


def test_output_projection_is_saved_in_the_order_of_the_heads():
    config = toy.hybrid((0, 3))
    params = toy.counted_params(config)
    mixer = params["layers"][0]["mixer"]
    mixer["fa"]["w_o_NHD"][:] = np.array([0, 3])[:, None, None]
    mixer["gdn"]["w_o_NHD"][:] = np.array([1, 2])[:, None, None]
    row = next(row for row in key_table(config) if row.name.endswith("o_proj.weight"))
    weight = row.layout.save(*(get_param(params, path) for path in row.paths))
    assert (weight == np.repeat(np.arange(4), config.head_dim)).all()


@pytest.mark.parametrize("size", QWEN3_SIZES)
def test_parameter_count_of_every_qwen3(size):
    leaves = jax.tree.leaves(abstract_params(qwen3(size)))
    assert sum(map(math.prod, weight_shapes(qwen3(size)).values())) == sum(x.size for x in leaves)


@pytest.mark.parametrize("size", QWEN3_SIZES)
def test_shapes_of_every_qwen3_are_those_of_transformers(size):
    from tests.hydrahead_jax.interop.with_torch import torch, transformers

    config = qwen3(size)
    settings = transformers.Qwen3Config(**to_hf_config(config, "bfloat16"))
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(settings)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tied_embeddings:
        del expected["lm_head.weight"]
    assert weight_shapes(config) == expected
