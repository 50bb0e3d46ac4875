"""Every experiment in configs/ constructs, at its real size, without allocating weights."""

import dataclasses
import importlib
import pkgutil

import jax
import pytest

import configs
from hydrahead_jax.config import Hydra, ModelConfig
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.interop import read_config
from hydrahead_jax.models import abstract_params
from hydrahead_jax.precision import training_policy
from train.data import abstract_batch
from train.pretrain import PretrainConfig
from train.select_config import SelectConfig
from train.stage import check_stages
from train.step import abstract_state, make_train_step
from train.transfer import TransferConfig

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__)]


def models(module) -> tuple[ModelConfig, ModelConfig | None]:
    """The model that is trained, and its teacher."""
    config = module.config()
    if isinstance(config, PretrainConfig):
        return config.model, None
    teacher = (
        module.TEACHER_MODEL if hasattr(module, "TEACHER_MODEL") else read_config(config.teacher)
    )
    quarter = tuple(range(teacher.query_heads // 4))
    plan = HeadPlan(
        fa_heads=(quarter,) * teacher.layers,
        query_heads=teacher.query_heads,
        kv_heads=teacher.kv_heads,
        strategy="test",
    )
    return plan.student(teacher, config.choices), teacher


@pytest.mark.parametrize("name", NAMES)
def test_config_constructs(name):
    module = importlib.import_module(f"configs.{name}")
    assert module.__doc__ and "python -m train" in module.__doc__
    config = module.config()
    if isinstance(config, SelectConfig):
        assert config.strategy and config.ratio
    if not isinstance(config, (PretrainConfig, TransferConfig)):
        return
    model, teacher = models(module)
    check_stages(config.stages, model.max_length)
    for stage in config.stages:
        state, _ = abstract_state(stage, model)
        assert state.trainable
    # Layers are alike, and tracing many of them takes minutes.
    model, teacher = (m and dataclasses.replace(m, mixers=m.mixers[:3]) for m in (model, teacher))
    for stage in config.stages:
        state, frozen = abstract_state(stage, model)
        step = make_train_step(stage, model, teacher, training_policy())
        teacher_params = abstract_params(teacher) if teacher else None
        new, metrics = jax.eval_shape(
            step, state, frozen, teacher_params, abstract_batch(stage.data)
        )
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert "loss" in metrics


def test_real_size_experiment_follows_the_recipe():
    """The numbers of the recipe: arXiv 2601.22156, as the method's paper uses them."""
    from configs import qwen3_1p7b_3to1 as module

    stages = {stage.name: stage for stage in module.config().stages}
    rates = {n: (s.optim.learning_rate, s.optim.end_fraction) for n, s in stages.items()}
    assert rates["align"] == (1e-3, 0.01) and rates["distill"] == (1e-4, 0.1)
    assert stages["finetune"].optim.schedule == "constant" and rates["finetune"][0] == 1e-5
    sizes = [(s.data.length, s.data.batch, s.steps) for s in stages.values()]
    assert sizes == [(512, 32, 20_000), (512, 96, 20_000), (16_384, 128, 500)]
    tokens = [length * batch * steps / 1e9 for length, batch, steps in sizes]
    assert [round(t, 1) for t in tokens] == [0.3, 1.0, 1.0]
    student, _ = models(module)
    assert all(isinstance(mixer, Hydra) for mixer in student.mixers)
