"""Prepares text for the tests of this folder."""

import pytest

from tests.train.data import prepared_text
from train.data.text import Corpus


@pytest.fixture(scope="package")
def folders(tmp_path_factory):
    """Prepares two folders of different documents."""
    root = tmp_path_factory.mktemp("prepared")
    return [prepared_text.prepared(root / str(i), prepared_text.texts(60, i)) for i in range(2)]


@pytest.fixture(scope="package")
def corpus():
    return Corpus(prepared_text.tokenizer())
