"""Checks the floors (layers) of the project: imports run downwards only."""

import pytest

from tests.floors import project_sources, violations
from tests.house import arrows, circles


def test_imports_run_downwards_only():
    sources = project_sources()
    assert len(sources) > 40
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "code", "message"),
    [
        ("pallas_kernels.x", "from hydrahead_jax.ops import rope", "above it"),
        ("pallas_kernels.x", "import flax", "may not"),
        ("pallas_kernels.x", "import einops", "may not"),
        ("hydrahead_jax.ops.x", "from hydrahead_jax.config import ModelConfig", "above it"),
        ("hydrahead_jax.ops.x", "from hydrahead_jax import errors", "above it"),
        ("hydrahead_jax.models.x", "import hydrahead_jax.evals.niah", "above it"),
        ("hydrahead_jax.models.x", "def f():\n    from train import loop", "above it"),
        ("hydrahead_jax.evals.x", "import train", "above it"),
        ("train.files.x", "from configs import demo", "above it"),
        ("hydrahead_jax.models.x", "from ..evals import niah", "above it"),
        ("hydrahead_jax.generate.x", "from flax import nnx", "stays in mixers and models"),
        ("train.files.x", "import flax.nnx", "stays in mixers and models"),
    ],
)
def test_the_check_finds_a_planted_import(module, code, message):
    sources = project_sources() | {module: code}
    found = violations(sources)
    assert found and all(module in sentence for sentence in found)
    assert any(message in sentence for sentence in found)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("pallas_kernels.x", "import functools, jax.numpy\nfrom jax.experimental import pallas"),
        ("hydrahead_jax.ops.x", "from pallas_kernels import gated_delta\nimport einops"),
        ("hydrahead_jax.evals.x", "from hydrahead_jax.generate import generate"),
        ("configs.x", "from train.run.loop import run\nfrom hydrahead_jax.config import qwen3"),
        ("hydrahead_jax.mixers.x", "from flax import nnx"),
    ],
)
def test_the_check_allows_imports_downwards(module, code):
    assert violations(project_sources() | {module: code}) == []


def test_a_room_without_a_floor_is_found():
    with pytest.raises(LookupError, match=r"hydrahead_jax\.attic\.x is on no floor"):
        violations({"hydrahead_jax.attic.x": "import hydrahead_jax.config"})


def test_no_rooms_import_one_another_in_a_circle():
    assert circles(set(arrows(project_sources()))) == []
