"""Lists the floors (layers) of the project, and finds what modules import."""

import ast
import functools
import sys

from tests.root import ROOT

PACKAGES = ("pallas_kernels", "hydrahead_jax", "train", "configs", "benchmarks")
FLOORS = [  # a module may import its own floor and the floors above it in this list
    ("pallas_kernels",),
    ("hydrahead_jax.ops",),
    ("hydrahead_jax.context",),
    (
        "hydrahead_jax",
        "hydrahead_jax.config",
        "hydrahead_jax.dataclass_json",
        "hydrahead_jax.head_plan",
        "hydrahead_jax.layer_plan",
        "hydrahead_jax.errors",
        "hydrahead_jax.json_file",
        "hydrahead_jax.local_path",
        "hydrahead_jax.resumable",
        "hydrahead_jax.token_ids",
        "hydrahead_jax.precision",
        "hydrahead_jax.sharding",
        "hydrahead_jax.cache",
        "hydrahead_jax.mixers",
        "hydrahead_jax.models",
        "hydrahead_jax.text_files",
    ),
    ("hydrahead_jax.vocabulary",),
    ("hydrahead_jax.interop",),
    ("hydrahead_jax.generate",),
    ("hydrahead_jax.evals",),
    ("hydrahead_jax.kv_quality",),
    ("hydrahead_jax.selection.probes",),
    ("hydrahead_jax.selection.scores",),
    ("hydrahead_jax.selection.effects",),
    ("hydrahead_jax.selection.plans",),
    ("hydrahead_jax.selection.checks",),
    (
        "hydrahead_jax.selection",
        "hydrahead_jax.selection.circuit",
        "hydrahead_jax.selection.pipeline",
        "hydrahead_jax.selection.screening",
        "hydrahead_jax.selection.settings",
    ),
    ("train.distributed",),
    ("train.files",),
    ("train.data.documents",),
    ("train.data.prepared",),
    ("train.data",),
    ("train.stage",),
    ("train.losses",),
    ("train.teacher",),
    ("train.run",),
    ("train.reports",),
    ("train.commands",),
    ("train.plan",),
    ("train.select",),
    ("train.evidence",),
    ("train.prepare",),
    ("train.launch",),
    (
        "train",
        "train.__main__",
        "train.command_line",
        "train.export",
        "train.text",
        "train.tokenizer",
        "train.transfer",
    ),
    ("configs",),
    ("benchmarks",),
]
MIXED = (
    "hydrahead_jax",
    "hydrahead_jax.selection",
    "train",
)  # packages whose rooms have floors of their own
KERNELS_MAY_IMPORT = {"jax", "jaxtyping", "numpy"}
FLAX_ROOMS = ("hydrahead_jax.mixers", "hydrahead_jax.models")


@functools.cache
def floor(module: str) -> int | None:
    """Returns the number of a module's floor; None for modules of other projects."""
    if module.split(".")[0] not in PACKAGES:
        return None
    rooms = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    for depth in range(len(module.split(".")), 0, -1):
        room = ".".join(module.split(".")[:depth])
        if room in rooms and (room not in MIXED or module == room):
            return rooms[room]
    raise LookupError(f"{module} is on no floor; put its room into FLOORS")


def imported_modules(module: str, source: str, modules: set[str]) -> set[str]:
    """Returns the absolute names that a module imports.

    `from a import b` counts as a.b where that is a module.
    """
    names = set()
    for node in _imports(source):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            here = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*here, *([node.module] if node.module else [])])
            full = {f"{origin}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else origin for name in full}
    return names


@functools.cache
def _imports(source: str) -> list[ast.Import | ast.ImportFrom]:
    return [x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Import | ast.ImportFrom)]


def violations(sources: dict[str, str]) -> list[str]:
    """Returns one sentence for each forbidden import; `sources` maps module names to code."""
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


@functools.cache
def project_sources() -> dict[str, str]:
    sources = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = path.read_text()
    return sources
