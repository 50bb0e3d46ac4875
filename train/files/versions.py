"""Records the versions that a result was measured with."""

import importlib.metadata
import os
import platform

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "torch", "transformers")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages used, the platform and its cores."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found["cores"] = str(os.cpu_count())
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
