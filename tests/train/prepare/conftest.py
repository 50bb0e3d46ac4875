from pathlib import Path

import pytest

from tests.train.data import prepared_text


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory) -> Path:
    return prepared_text.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
