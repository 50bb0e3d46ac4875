"""Provides PyTorch and transformers; a test module that imports it is skipped without them."""

import pytest

torch = pytest.importorskip(
    "torch",
    reason="PyTorch is not installed in this environment: parity tests run in the Python 3.11 cell",
)
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SAME = 2e-5


def load(folder, **options):
    """Loads a folder together with the code of the model that lies in it."""
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, trust_remote_code=True, **options)
