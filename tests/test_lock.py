"""Checks that the locks in requirements/ fit pyproject.toml and the versions in these tests."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.root import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("dev", "clients", "hardware-free")
LOCKED_PYTHONS = ("3.11", "3.12", "3.13")
HERE = "{}.{}".format(*sys.version_info)


def lock_of(python: str) -> dict[str, Version]:
    """Returns the version of each package in a Python's lock; every line is NAME==VERSION."""
    lines = (ROOT / f"requirements/py{python.replace('.', '')}.txt").read_text().splitlines()
    pins = [re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line) for line in lines if line[0] != "#"]
    assert None not in pins, "a line names no version, or names a folder or an index"
    return {pin[1]: Version(pin[2]) for pin in pins}


def required(lines: list[str], python: str) -> list[Requirement]:
    """Returns the requirements of some lines for a Python on Linux, our own extras resolved."""
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                found += required(PROJECT["optional-dependencies"][extra], python)
        elif requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            found.append(requirement)
    return found


@pytest.mark.parametrize("python", LOCKED_PYTHONS)
def test_each_dependency_is_locked_within_its_range(python):
    lock = lock_of(python)
    requirements = required(PROJECT["dependencies"], python)
    for extra in EXTRAS:
        requirements += required(PROJECT["optional-dependencies"][extra], python)
    outside = [
        f"{requirement}: {lock.get(canonicalize_name(requirement.name), 'missing')}"
        for requirement in requirements
        if not requirement.specifier.contains(lock.get(canonicalize_name(requirement.name), "0"))
    ]
    assert not outside, f"run `make lock`: {outside}"


@pytest.mark.skipif(
    not Path(sys.prefix, "installed").exists() or HERE not in LOCKED_PYTHONS,
    reason="this environment was not made from a lock: run `make test`",
)
def test_the_installed_versions_are_those_of_the_lock():
    installed = {
        canonicalize_name(distribution.name): Version(distribution.version)
        for distribution in importlib.metadata.distributions()
    }
    different = [
        f"{name} {installed[name]} is installed and {version} is locked"
        for name, version in lock_of(HERE).items()
        if name in installed and Version(installed[name].public) != version
    ]
    assert not different, different
