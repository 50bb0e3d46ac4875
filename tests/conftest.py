"""Sets up the suite: one CPU device, quick compilers, and each test in its make target."""

import atexit
import gc
import importlib.util
import os
import shutil
import tempfile

import jax
import pytest

from tests import quick

if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
if "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def _share_compiled_programs() -> None:
    """Gives all processes of a run one compilation cache, which is deleted when the run ends."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="compiled_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


_share_compiled_programs()
# A program without the lines it came from is made in less time, here and in processes started here.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
jax.config.update("jax_traceback_in_locations_limit", 0)
if "XLA_FLAGS" not in os.environ:
    # Read once a process, at the first program. Compilers for TPU and GPU, in processes of their
    # own, must not inherit it: their code is what some tests measure.
    with quick.variable("XLA_FLAGS", quick.FLAGS):
        jax.block_until_ready(jax.jit(lambda: 0)())

TARGETS = ("test", "test-latest", "test-heavy")
ONE_TARGET = {
    "torch": "test",
    "interpreter": "test-latest",
    "tpu_compiler": "test-latest",
    "gpu_compiler": "test-latest",
}


# What these compute goes through ops, kernels, mixers and models, which both cells test.
ONE_CELL = {
    "test": (
        "tests/hydrahead_jax/evals",
        "tests/hydrahead_jax/generate",
        "tests/hydrahead_jax/interop",
        "tests/hydrahead_jax/kv_quality",
        "tests/hydrahead_jax/selection",
        "tests/hydrahead_jax/test_",
        "tests/hydrahead_jax/vocabulary",
        "tests/test_imports.py",
        "tests/test_messages.py",
        "tests/train",
    ),
    "test-latest": (
        "tests/hydrahead_jax/context",
        "tests/pallas_kernels/hardware",
        "tests/pallas_kernels/report",
    ),
}
# The commands, and with them selection, checkpoints and data, run with the newest jax too.
BOTH_CELLS = ("tests/train/commands", "tests/train/select/test_select.py")


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--cell",
        choices=TARGETS,
        help="the make target that runs: tests of the other one are skipped, and what a test "
        "needs must be there. Without it all tests run that can.",
    )


def targets(item) -> dict[str, str]:
    """Returns the make targets that the test's marks bind it to, and why."""
    found = {}
    if item.get_closest_marker("heavy"):
        return {"test-heavy": "heavy"}
    for mark in item.iter_markers():
        if mark.name in ONE_TARGET:
            found[ONE_TARGET[mark.name]] = mark.name
        if mark.name == "only_in":
            target, reason = mark.args
            found[target] = reason
    if not found and not item.nodeid.startswith(BOTH_CELLS):
        for target, rooms in ONE_CELL.items():
            if item.nodeid.startswith(rooms):
                found[target] = "computes no other way with another jax"
    return found


def missing(item) -> str:
    """Returns what the test needs and this environment lacks, or an empty text."""
    from pallas_kernels.hardware import gpu
    from pallas_kernels.hopper.machine import OLDEST_JAX

    marks = {mark.name for mark in item.iter_markers()}
    mosaic_gpu = "gpu_compiler" in marks or ("gpu",) in {
        mark.args for mark in item.iter_markers("interpreter")
    }
    if mosaic_gpu and jax.__version_info__ < OLDEST_JAX:
        return f"jax 0.11 for the Hopper kernels, this is {jax.__version__}"
    if "torch" in marks and not importlib.util.find_spec("torch"):
        return "PyTorch (extra torch)"
    if "tpu_compiler" in marks and not importlib.util.find_spec("libtpu"):
        return "libtpu (extra hardware-free)"
    if "gpu_compiler" in marks and (tools := gpu.missing_tools()):
        return f"{', '.join(tools)} (extra hardware-free)"
    return ""


# The README's commands reuse programs that the demo's test compiled: one process runs both, in this
# order, which is sure for the first tests alone.
FIRST = ("tests/train/evidence/test_demo.py", "tests/test_readme.py")


def pytest_collection_modifyitems(items) -> None:
    place = {file: number for number, file in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(FIRST)))
    for item in items:
        if len(found := targets(item)) > 1:
            raise pytest.UsageError(f"{item.nodeid} would run in no cell: {found}")


def pytest_collection_finish() -> None:
    """Makes garbage collections rare and short: JAX adds work of its own to each."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def _same_folder():
    """Fails a test that leaves the process in another folder, where later ones find no configs."""
    before = os.getcwd()
    yield
    assert os.getcwd() == before


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    cell = item.config.getoption("cell")
    for target, why in targets(item).items():
        if cell not in (None, target):
            pytest.skip(f"{why}: in `make {target}`")
    if tool := missing(item):
        (pytest.fail if cell else pytest.skip)(f"needs {tool}")
