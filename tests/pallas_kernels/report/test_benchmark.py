"""Checks the benchmark command: what it checks, what it refuses, what it writes."""

import dataclasses
import json
import sys
import types

import jax.numpy as jnp
import pytest

from benchmarks import gated_delta as competition
from benchmarks import kernels
from benchmarks.contestant import Contestant
from benchmarks.gated_delta import contestants, ours
from pallas_kernels import gated_delta
from pallas_kernels.gated_delta.shapes import LONG, Shape
from tests.pallas_kernels.gated_delta.oracle import Results

SMALL = ["--tokens", "64", "128", "--heads", "2", "--group", "2", "--head-size", "16"]


def timing(name="a", tokens=2048, forward_s=1.0, backward_s=2.0, peer=False):
    return kernels.Timing(
        peer=peer,
        implementation=name,
        shape=f"T{tokens} N2 H16",
        tokens=tokens,
        forward_s=forward_s,
        backward_s=backward_s,
        forward_floor_s=0.5,
        backward_floor_s=None,
    )


def wrong(name: str) -> Contestant:
    """Returns the chunked form with gradients of q one per cent too large."""
    right = ours("chunked")

    def results(case) -> Results:
        found = right.results(case)
        return found._replace(dq=found.dq * 1.01)

    return dataclasses.replace(right, name=name, results=results)


def test_command_checks_times_and_writes(monkeypatch, tmp_path, capsys):
    some_cases = competition.hostile_cases(16)[::12]
    monkeypatch.setattr(competition, "hostile_cases", lambda head_size: some_cases)
    path = tmp_path / "times.json"
    kernels.main(["--implementation", "chunked", "tpu", "--out", str(path), *SMALL])
    out = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert [row["shape"] for row in record["timings"]] == ["T64 N2 K1 H16", "T128 N2 K1 H16"]
    assert all(row["forward_s"] > 0 and row["backward_s"] > 0 for row in record["timings"])
    assert {row["implementation"] for row in record["timings"]} == {"chunked"}
    assert record["device"] == "cpu" and "jax " in record["made"]
    assert list(record["not_reported"]) == ["tpu"]
    assert "not reported: tpu: " in out
    assert "T64 to T128 within" in out


def test_wrong_results_are_not_reported(monkeypatch, tmp_path, capsys):
    first_cases = competition.hostile_cases(16)[:2]
    monkeypatch.setattr(competition, "hostile_cases", lambda head_size: first_cases)
    skewed = wrong("skewed")
    monkeypatch.setattr(competition, "contestants", lambda names: [skewed])
    path = tmp_path / "times.json"
    kernels.main(["--out", str(path), *SMALL])
    record = json.loads(path.read_text())
    assert record["timings"] == []
    assert any("dq 1.0e-02 > 0.008" in text for text in record["not_reported"]["skewed"])
    kernels.main(["--out", str(path), "--time-failing", *SMALL])
    record = json.loads(path.read_text())
    assert len(record["timings"]) == 2
    assert all("dq 1.0e-02 > 0.008" in row["failures"][0] for row in record["timings"])
    assert "skewed (fails its check)" in capsys.readouterr().out


def fla_in_float64(q, k, v, *, g, beta, initial_state=None, output_final_state=False):
    """Computes what fla's documentation says: [B, T, H, D], state [B, H, K, V]."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    group = v.shape[2] // k.shape[2]
    q, k = (x.double().repeat_interleave(group, 2) for x in (q, k))
    wide = v.double()
    state = 0.0 if initial_state is None else initial_state.double()
    out = []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None, None].double().exp()
        seen = (state * k[:, t, :, :, None]).sum(-2)
        write = beta[:, t, :, None].double() * (wide[:, t] - seen)
        state = state + k[:, t, :, :, None] * write[..., None, :]
        out.append((state * q[:, t, :, :, None]).sum(-2) / q.shape[-1] ** 0.5)
    assert output_final_state
    return torch.stack(out, 1).to(v.dtype), state.float()


def test_fla_is_called_as_it_wants(monkeypatch):
    """A stand-in runs on the CPU; the package itself needs a GPU."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    package = types.ModuleType("fla.ops.gated_delta_rule")
    package.chunk_gated_delta_rule = fla_in_float64
    for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(competition, "_TORCH_DEVICE", "cpu")
    first_cases = competition.hostile_cases(16)[:2]
    monkeypatch.setattr(competition, "hostile_cases", lambda head_size: first_cases)
    contestant = competition.fla()
    assert kernels.check(competition, contestant, head_size=16) == []
    forward, backward = contestant.calls(Shape(tokens=8, heads=2, key_heads=1, head_size=16))
    assert [tuple(x.shape) for x in forward()] == [(1, 8, 2, 16), (1, 2, 16, 16)]
    shapes = [(1, 8, 1, 16), (1, 8, 1, 16), (1, 8, 2, 16), (1, 8, 2), (1, 8, 2)]
    assert [tuple(x.shape) for x in backward()] == shapes
    assert all((first == again).all() for first, again in zip(backward(), backward(), strict=True))


def test_tokamax_is_called_as_it_wants(monkeypatch):
    """A stand-in has the layout of its documentation; the package itself needs a TPU."""

    def kimi_delta_attention(q, k, v, g, beta, *, initial_state, output_final_state, **kwargs):
        assert kwargs == {"implementation": "mosaic"} and output_final_state
        last = lambda x: jnp.moveaxis(x, 0, 2)
        state = None if initial_state is None else initial_state[:, 0]
        out, state = gated_delta(
            *map(last, (q, k, v)),
            last(g)[..., 0],
            last(beta),
            initial_state_BNHP=state,
            implementation="chunked",
        )
        return jnp.moveaxis(out, 2, 0), state[:, None]

    package = types.ModuleType("tokamax.ops")
    package.kimi_delta_attention = kimi_delta_attention
    for name in ("tokamax", "tokamax.ops"):
        monkeypatch.setitem(sys.modules, name, package)
    contestant = competition.tokamax_kda()
    taken = [case for case in competition.hostile_cases(16) if contestant.takes(case)]
    assert taken and all(case.key_heads == 2 and case.beta != 2.0 for case in taken)
    monkeypatch.setattr(competition, "hostile_cases", lambda head_size: taken[:2])
    assert kernels.check(competition, contestant, head_size=16) == []
    forward, backward = contestant.calls(Shape(tokens=64, heads=2, key_heads=2, head_size=16))
    assert forward()[1].shape == (1, 2, 16, 16)
    assert [x.shape for x in backward()][3:] == [(1, 64, 2), (1, 64, 2)]


def test_every_kind_of_hostile_input_is_checked():
    cases = competition.hostile_cases(64)
    assert {case.keys for case in cases} == {"random", "identical", "cosine 0.9", "zero"}
    assert {case.log_decay for case in cases} >= {"random", "mixed", 0.0, -20.0, -1e4}
    assert {case.value_heads // case.key_heads for case in cases} == {1, 2}
    assert {(case.key_dim, case.value_dim, case.dtype) for case in cases} == {(64, 64, "bfloat16")}


def test_defaults_are_what_runs_here():
    names = [contestant.name for contestant in contestants()]
    assert "chunked" in names and "reference" in names
    assert "fla" not in names and "tokamax KDA" not in names


@pytest.mark.parametrize(("factor", "verdict"), [(1.09, "proportional"), (1.2, "NOT proportional")])
def test_cost_a_token_is_compared_with_the_longest(factor, verdict):
    lines = kernels.proportionality(
        [timing(tokens=2048, forward_s=2.0 * factor), timing(tokens=4096, forward_s=4.0)]
    )
    assert lines[0].startswith(f"a N2 H16 forward: {verdict}, T2048 to T4096")
    assert "NOT" in lines[1]  # twice the cost a token in the backward


def test_report_gives_ratios_to_known_floors_only():
    (_, line) = kernels.report([timing()]).splitlines()
    assert line.split() == ["a", "T2048", "N2", "H16", "1000.000", "2.0", "-", "2000.000", "-"]


def test_backward_floor_is_that_of_the_backward_alone(monkeypatch):
    assert kernels.floors(competition, LONG) == (None, None)
    monkeypatch.setattr(kernels, "chip_of", lambda kind: "h200")
    forward, backward = kernels.floors(competition, LONG)
    assert forward == pytest.approx(0.177e-3, rel=0.01)  # compute
    assert backward == pytest.approx(0.521e-3, rel=0.01)  # compute; traffic takes 0.28


def test_ours_are_compared_with_the_fastest_of_the_others():
    timings = [
        timing("ours", forward_s=2.0, backward_s=4.0),
        timing("slow", forward_s=3.0, backward_s=5.0, peer=True),
        timing("fast forward", forward_s=1.5, backward_s=6.0, peer=True),
        timing("ours", tokens=4096),
    ]
    expected = "ours T2048 N2 H16: forward 0.75x the speed of fast forward, "
    assert kernels.against_peers(timings) == [f"{expected}backward 1.25x the speed of slow"]
    step = dataclasses.replace(timings[0], backward_s=None)
    (line,) = kernels.against_peers([step, timings[2]])
    assert line == expected.rstrip(", ")
