"""Makes one tiny export for all client tests."""

import copy

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from hydrahead_jax.interop import export_torch, torch_export
from tests.hydrahead_jax.interop import toy


@pytest.fixture(scope="session")
def params():
    from tests.hydrahead_jax.interop.clients.tiny import CONFIG

    return toy.random_params(CONFIG)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, params):
    from tests.hydrahead_jax.interop.clients.tiny import CONFIG

    root = tmp_path_factory.mktemp("client")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_export, "torch_is_installed", lambda: False)
        export_torch(root / "out", CONFIG, params, _tokenizer_of_words(root / "tokenizer"))
    return root / "out"


def _tokenizer_of_words(folder):
    toy.write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def loaded(folder):
    from tests.hydrahead_jax.interop.clients.tiny import load

    return load(folder)


@pytest.fixture
def model(loaded):
    """Returns a copy of the export, which a test may change."""
    return copy.deepcopy(loaded)
