"""Provides what the PyTorch tests of this folder share."""

import importlib.util

import pytest


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
