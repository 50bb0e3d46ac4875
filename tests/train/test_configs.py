"""Checks that every experiment in configs/ constructs at its real size, without weights."""

import dataclasses
import importlib
import math
import pkgutil
import re

import jax
import pytest

import configs
from hydrahead_jax.config import Hydra, ModelConfig
from hydrahead_jax.precision import training_policy
from train.commands.pretrain import PretrainConfig
from train.commands.transfer import TransferConfig
from train.plan.models import models_of
from train.run.train_step import abstract_arguments, abstract_state, make_train_step
from train.select.config import SelectConfig
from train.stage.mesh_checks import check_mesh
from train.stage.stage import check_stages

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__)]
TRACED = ("tiny_teacher", "tiny_transfer", "qwen3_1p7b_3to1")  # the others differ in sizes only


def models(config) -> tuple[ModelConfig, ModelConfig | None]:
    """Returns the model that is trained, and its teacher."""
    if isinstance(config, PretrainConfig):
        return config.model, None
    found = models_of(config)
    return found.student, found.teacher


@pytest.mark.parametrize("name", NAMES)
def test_config_constructs(name):
    module = importlib.import_module(f"configs.{name}")
    assert module.__doc__ and "python -m train" in module.__doc__
    if not hasattr(module, "config"):
        return
    config = module.config()
    if isinstance(config, SelectConfig):
        assert config.strategy and config.ratio
    if not isinstance(config, (PretrainConfig, TransferConfig)):
        return
    model, teacher = models(config)
    check_stages(config.stages, model.max_length, hybrid=isinstance(config, TransferConfig))
    if hasattr(module, "MACHINE"):
        devices = math.prod(map(int, re.findall(r"\d+", module.MACHINE.target.partition(":")[2])))
        for stage in config.stages:
            sizes = check_mesh(stage, stage.mesh, devices, model, teacher)
            assert math.prod(sizes.values()) == devices
    # Layers are alike, and tracing many of them takes minutes.
    model, teacher = (m and dataclasses.replace(m, mixers=m.mixers[:3]) for m in (model, teacher))
    for stage in config.stages:
        assert abstract_state(stage, model)[0].trainable
        if name in TRACED:
            trace_step(stage, model, teacher)


def trace_step(stage, model, teacher):
    what = (stage, model, teacher, training_policy())
    state, *others = abstract_arguments(*what)
    new, metrics = jax.eval_shape(make_train_step(*what), state, *others)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert "loss" in metrics


def test_real_size_experiment_follows_the_recipe():
    """The numbers are those of arXiv 2601.22156, as the method's paper uses them."""
    from configs import qwen3_1p7b_3to1 as module

    stages = {stage.name: stage for stage in module.config().stages}
    rates = {n: (s.optim.learning_rate, s.optim.end_fraction) for n, s in stages.items()}
    assert rates["align"] == (1e-3, 0.01) and rates["distill"] == (1e-4, 0.1)
    assert stages["finetune"].optim.schedule == "constant" and rates["finetune"][0] == 1e-5
    sizes = [(s.data.length, s.data.batch, s.steps) for s in stages.values()]
    assert sizes == [(512, 32, 20_000), (512, 96, 20_000), (16_384, 128, 500)]
    tokens = [length * batch * steps / 1e9 for length, batch, steps in sizes]
    assert [round(t, 1) for t in tokens] == [0.3, 1.0, 1.0]
    student, _ = models(module.config())
    assert all(isinstance(mixer, Hydra) for mixer in student.mixers)
