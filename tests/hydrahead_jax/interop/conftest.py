"""Provides folders of models, and quiet PyTorch."""

import importlib.util
import shutil

import jax.numpy as jnp
import pytest

from hydrahead_jax.interop import save_hf_teacher
from hydrahead_jax.interop.hf_export import write_model
from tests.hydrahead_jax.interop import toy


@pytest.fixture(scope="session", autouse=True)
def quiet_torch(tmp_path_factory):
    """Sets one thread, no progress bars, and a temporary folder for the code of exported models."""
    if not importlib.util.find_spec("transformers"):
        yield
        return
    import torch
    import transformers

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    patch = pytest.MonkeyPatch()
    modules = str(tmp_path_factory.mktemp("transformers_modules"))
    patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    yield
    patch.undo()
    torch.set_num_threads(threads)
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Writes folders of one teacher, in one file, in shards, and untied, and of a hybrid."""
    root = tmp_path_factory.mktemp("made")
    params, untied = toy.random_params(toy.TEACHER), toy.TIED_AND_UNTIED[1]
    save_hf_teacher(root / "plain", toy.TEACHER, params, jnp.float32)
    save_hf_teacher(root / "shards", toy.TEACHER, params, jnp.float32, shard_bytes=4000)
    save_hf_teacher(root / "untied", untied, toy.random_params(untied), jnp.float32)
    (root / "hybrid").mkdir()
    write_model(root / "hybrid", toy.MIXED, toy.random_params(toy.MIXED), jnp.float32)
    return root


@pytest.fixture
def copied(made, tmp_path):
    """Returns a function that copies one of these folders, which a test may change."""
    return lambda name: shutil.copytree(made / name, tmp_path / name)
