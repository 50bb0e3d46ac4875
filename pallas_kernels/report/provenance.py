"""Says what a figure was made with."""

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda13-plugin",
    "nvidia-cuda-nvcc",
    "flash-linear-attention",
    "triton",
    "tokamax",
)
_ROOT = Path(__file__).parents[1]


@functools.cache
def provenance() -> str:
    """Returns commit and versions, in one line."""
    versions = [f"{name} {found}" for name in _PACKAGES if (found := _version(name))]
    return ", ".join([f"commit {_commit()}", f"Python {platform.python_version()}", *versions])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", str(_ROOT))
    return (commit or "unknown") + (" with changes" if changed else "")


def _git(*words: str) -> str:
    """Returns what git prints; nothing outside a checkout or without git."""
    try:
        ran = subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return ran.stdout.strip()
