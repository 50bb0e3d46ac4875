"""Checks how the TPU compiler schedules the ring and the exchange of states on eight chips."""

import re

import pytest

from pallas_kernels.hardware import hlo
from pallas_kernels.hardware.collectives import traffic
from pallas_kernels.hardware.isolated import run_isolated
from pallas_kernels.hardware.topology import TPU_ENVIRONMENT
from tests.hydrahead_jax.context.programs import (
    HEAD,
    RANKS,
    attention_gradients,
    compiled_text,
    delta_gradients,
)

pytestmark = pytest.mark.tpu_compiler
TOKENS = 512


def compiled(program) -> str:
    return run_isolated(compiled_text, program, "tpu", TOKENS, 1, environment=TPU_ENVIRONMENT)


def exchanges_across(instructions: dict[str, str], kernel: str) -> int:
    """Counts the exchanges that begin before the kernel's call and end after it."""
    order = list(instructions)
    at = next(i for i, name in enumerate(order) if kernel in instructions[name])
    across = 0
    for i, name in enumerate(order):
        if start := re.search(r"collective-permute-done\(%([\w.-]+)\)", instructions[name]):
            across += order.index(start[1]) < at < i
    return across


def test_keys_travel_while_the_kernels_run():
    """Keys, values and segments go both ways, sums of gradients in the backward pass only."""
    text = compiled(attention_gradients)
    bodies = [body for body in hlo.parse(text)[0].values() if any("condit" in x for x in body)]
    assert [exchanges_across(body, " conditional(") for body in bodies] == [3, 5]
    assert {"attention_forward", "attention_backward"} <= set(re.findall("attention_[a-z]+", text))
    sent = traffic(text).sent()
    keys = 2 * TOKENS * HEAD  # bytes of one array
    rounds = 2 * RANKS - 1  # the first one serves forward and backward
    of_keys, of_sums = rounds * (2 * keys + 4 * TOKENS), (RANKS - 1) * 4 * keys + 2 * keys
    assert sent == {"collective-permute": pytest.approx(of_keys + of_sums, rel=0.01)}


def test_states_travel_and_tokens_do_not():
    sent = traffic(compiled(delta_gradients)).sent()
    maps = 4 * HEAD * 2 * HEAD  # bytes of one
    rounds = 1 + 3  # the first exchange, and log2 of eight ranks
    assert sent["collective-permute"] == pytest.approx(2 * 2 * rounds * maps, rel=0.05)
    assert set(sent) == {"collective-permute", "all-reduce"}
    assert sent["all-reduce"] < 4 * maps
