"""Checks the demo's XLA flags: set on a CPU only, never over the user's, known to this jaxlib."""

import os
import subprocess
import sys

import pytest

from train.evidence import short_compiles


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return monkeypatch


def test_on_a_cpu_the_flags_are_set_and_jax_takes_them(environment):
    short_compiles.compile_quickly()
    assert "--xla_backend_optimization_level=1" in os.environ["XLA_FLAGS"]
    program = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr


def test_flags_of_the_user_stay(environment):
    environment.setenv("XLA_FLAGS", "")
    short_compiles.compile_quickly()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize("platforms", ["cuda", "tpu", "cuda,cpu"])
def test_other_platforms_keep_their_compilers(platforms, environment):
    environment.setenv("JAX_PLATFORMS", platforms)
    short_compiles.compile_quickly()
    assert "XLA_FLAGS" not in os.environ


def test_without_a_named_platform_a_plugin_for_another_device_counts(environment):
    environment.delenv("JAX_PLATFORMS")
    environment.setattr(short_compiles.importlib.util, "find_spec", lambda _: None)
    environment.setattr(short_compiles.importlib.metadata, "entry_points", lambda **_: ["cuda12"])
    short_compiles.compile_quickly()
    assert "XLA_FLAGS" not in os.environ
    environment.setattr(short_compiles.importlib.metadata, "entry_points", lambda **_: [])
    short_compiles.compile_quickly()
    assert "XLA_FLAGS" in os.environ
