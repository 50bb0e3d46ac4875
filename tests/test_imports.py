"""The floors of the project: imports run downwards only."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pallas_kernels", "hydrahead_jax", "train", "configs")
FLOORS = [  # a module may import its own floor and the floors above it in this list
    ("pallas_kernels",),
    ("hydrahead_jax.ops",),
    ("hydrahead_jax.context",),
    ("hydrahead_jax.context",),
    (
        "hydrahead_jax",
        "hydrahead_jax.config",
        "hydrahead_jax.head_plan",
        "hydrahead_jax.errors",
        "hydrahead_jax.json_file",
        "hydrahead_jax.local_path",
        "hydrahead_jax.token_ids",
        "hydrahead_jax.precision",
        "hydrahead_jax.sharding",
        "hydrahead_jax.cache",
        "hydrahead_jax.mixers",
        "hydrahead_jax.models",
        "hydrahead_jax.text_files",
    ),
    (
        "hydrahead_jax.selection",
        "hydrahead_jax.interop",
        "hydrahead_jax.generate",
        "hydrahead_jax.evals",
    ),
    ("train",),
    ("configs",),
]
KERNELS_MAY_IMPORT = {"jax", "jaxtyping", "numpy"}
FLAX_ROOMS = ("hydrahead_jax.mixers", "hydrahead_jax.models")


def floor(module: str) -> int | None:
    """The number of a module's floor; None for modules of other projects."""
    if module.split(".")[0] not in PACKAGES:
        return None
    rooms = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    for depth in range(len(module.split(".")), 0, -1):
        room = ".".join(module.split(".")[:depth])
        if room in rooms and (room != "hydrahead_jax" or module == room):
            return rooms[room]
    raise LookupError(f"{module} is on no floor; put its room into FLOORS")


def imported_modules(module: str, source: str, modules: set[str]) -> set[str]:
    """Absolute names of what a module imports; `from a import b` is a.b where that is a module."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*here, *([node.module] if node.module else [])])
            full = {f"{origin}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else origin for name in full}
    return names


def violations(sources: dict[str, str]) -> list[str]:
    """One sentence for each import that is not allowed; `sources` maps module names to code."""
    found = []
    for module, source in sources.items():
        for name in sorted(imported_modules(module, source, set(sources))):
            package = name.split(".")[0]
            height = floor(name)
            if height is not None and height > floor(module):
                found.append(f"{module} imports {name}, which is above it")
            if package == "flax" and not module.startswith(FLAX_ROOMS):
                found.append(f"{module} imports flax, which stays in mixers and models")
            outside = package not in KERNELS_MAY_IMPORT | {"pallas_kernels"}
            if module.startswith("pallas_kernels") and outside and not is_stdlib(package):
                found.append(f"{module} imports {name}, which kernels may not")
    return found


def is_stdlib(package: str) -> bool:
    return package in sys.stdlib_module_names


def project_sources() -> dict[str, str]:
    sources = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = path.read_text()
    return sources


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
        ("train.x", "from configs import demo", "above it"),
        ("hydrahead_jax.models.x", "from ..evals import niah", "above it"),
        ("hydrahead_jax.generate.x", "from flax import nnx", "stays in mixers and models"),
        ("train.x", "import flax.nnx", "stays in mixers and models"),
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
        ("configs.x", "from train.loop import run\nfrom hydrahead_jax.config import qwen3"),
        ("hydrahead_jax.mixers.x", "from flax import nnx"),
    ],
)
def test_the_check_allows_imports_downwards(module, code):
    assert violations(project_sources() | {module: code}) == []


def test_a_room_without_a_floor_is_found():
    with pytest.raises(LookupError, match=r"hydrahead_jax\.attic\.x is on no floor"):
        violations({"hydrahead_jax.attic.x": "import hydrahead_jax.config"})
