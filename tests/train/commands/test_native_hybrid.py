"""Checks the conversion of a teacher into native hybrid attention, from transfer to export."""

import dataclasses

import jax
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import load_hf, torch_export
from hydrahead_jax.layer_plan import NativeHybridPlan
from hydrahead_jax.models import abstract_params
from tests.hydrahead_jax.interop.toy import same_tree
from tests.train import small
from train.commands.export import export_run
from train.commands.transfer import transfer
from train.files.param_paths import flatten, split
from train.files.run_folder import load_model
from train.stage.stage import ALL_BUT_MLP

PLAN = NativeHybridPlan(window=3, slots=4, global_every=2)


def test_two_steps_of_each_stage_then_export(tmp_path, monkeypatch):
    """The last stage leaves the MLPs alone, as the method's recipe does."""
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: False)
    config = small.transfer_config(tmp_path, steps=2, checkpoint_every=1)
    *others, last = config.stages
    last = dataclasses.replace(last, trainable=ALL_BUT_MLP)
    config = dataclasses.replace(config, head_plan=None, native_hybrid=PLAN, stages=(*others, last))
    student, params = transfer(config)
    assert student == PLAN.student(small.TEACHER) == load_model(tmp_path / "run")
    steps = small.logged(tmp_path / "run")
    assert [line["stage"] for line in steps] == [
        *2 * ["align"],
        *2 * ["distill"],
        *2 * ["finetune"],
    ]
    for line in steps:
        assert np.isfinite(line["loss"])
        assert 0 < line["sigma"] < 1 and line["sigma"] == line["sigma_layer_00"]
        assert "sigma_layer_01" not in line
    w_k_DKH = params["layers"][0]["mixer"]["qkv"]["w_k_DKH"]
    pairs_DKM = w_k_DKH.reshape(*w_k_DKH.shape[:2], 4, 2).mean(-1)
    assert np.abs(params["layers"][0]["mixer"]["w_gate_slots_DKM"] - pairs_DKM).max() > 1e-3
    assert {path for path in flatten(params) if "gate_slots" in path} == {
        "layers/0/mixer/w_gate_slots_DKM"
    }
    said = []
    assert same_tree(transfer(config, said.append)[1], params)
    assert said[-1].endswith("is finished, 6 steps; nothing to do")
    export_run(tmp_path / "run", tmp_path / "out")
    exported_config, exported = load_hf(tmp_path / "out")
    assert exported_config == student and same_tree(exported, jax.device_get(params))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Head plan" not in card and "1 of 2 layers see all tokens" in card


def test_the_recipe_leaves_the_mlps_alone():
    params = flatten(abstract_params(PLAN.student(small.TEACHER)))
    trained, frozen = split(params, ALL_BUT_MLP)
    assert {path.rpartition("/")[2] for path in frozen} == {"w_gate_DF", "w_up_DF", "w_down_FD"}
    assert "layers/1/mlp_norm_D" in trained and len(frozen) == 6


@pytest.mark.parametrize("both", [True, False])
def test_a_transfer_needs_one_plan(tmp_path, both):
    config = small.transfer_config(tmp_path)
    change = {"native_hybrid": PLAN} if both else {"head_plan": None}
    with pytest.raises(UserError, match=r"needs either head_plan, .* or native_hybrid"):
        transfer(dataclasses.replace(config, **change))
