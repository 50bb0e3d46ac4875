"""Checks the benchmark of attention, of its decode step, and of the libraries beside them."""

import dataclasses
import json

import jax
import pytest

from benchmarks import attention, attention_decode, kernels
from pallas_kernels.attention import cudnn
from pallas_kernels.attention.shapes import four_of_sixteen
from pallas_kernels.target import Target


@pytest.mark.parametrize("op", ["attention", "attention_decode"])
def test_attention_is_checked_timed_and_written(op, monkeypatch, tmp_path, capsys):
    some_cases = kernels.OPS[op].hostile_cases(16)[::4]
    monkeypatch.setattr(kernels.OPS[op], "hostile_cases", lambda head_size: some_cases)
    path = tmp_path / "times.json"
    small = ["--op", op, "--tokens", "128", "--heads", "2", "--group", "1", "--head-size", "16"]
    kernels.main([*small, "--implementation", "chunked", "tpu", "--out", str(path)])
    record = json.loads(path.read_text())
    shapes = [row["shape"].removeprefix("B8 ") for row in record["timings"]]
    assert shapes == ["T128 N2 H16", "T128 N4 K8 (0,0,2,5) H16"]
    assert all(row["forward_s"] > 0 for row in record["timings"])
    assert all(
        (row["backward_s"] is None) == (op == "attention_decode") for row in record["timings"]
    )
    assert list(record["not_reported"]) == ["tpu"]
    assert "chunked" in capsys.readouterr().out


def test_wrong_attention_is_not_reported(monkeypatch):
    right = attention.ours("chunked")
    cases = attention.hostile_cases(16)
    assert {case.head_dim for case in cases} == {16} and {case.logits for case in cases} > {
        "random"
    }
    assert {case.kv_head_of_query for case in cases} > {(0, 2, 2, 3)}
    monkeypatch.setattr(attention, "hostile_cases", lambda head_size: cases[-1:])
    skew = lambda case: right.results(case)._replace(dk=1.01 * right.results(case).dk)
    skewed = dataclasses.replace(right, results=skew)
    assert kernels.check(attention, right, head_size=16) == []
    (failure,) = kernels.check(attention, skewed, head_size=16)
    assert "dk 1.0e-02 > 0.008" in failure
    step = attention_decode.contestants(["reference"])[0]
    (case,) = attention_decode.hostile_cases(16)[:1]
    assert attention_decode.too_far(step.results(case), step.exact(case)) == []


def refuse(*arguments, **settings):
    raise NotImplementedError("not on this device")


def test_a_library_is_checked_on_what_it_takes(monkeypatch):
    """The XLA form of the same function replaces cuDNN, which needs the device."""
    xla = jax.nn.dot_product_attention
    stand_in = lambda *x, implementation, **kwargs: xla(*x, implementation="xla", **kwargs)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(cudnn, "target", lambda q: Target("gpu", "NVIDIA H200"))
    cases = [case for case in attention.hostile_cases(16) if case.logits == "random"]
    monkeypatch.setattr(attention, "hostile_cases", lambda head_size: cases)
    irregular = four_of_sixteen(32, head_size=16)
    for name in ("cudnn", "cudnn, repeated KV"):
        (contestant,) = attention.contestants([name])
        assert kernels.check(attention, contestant, head_size=16) == []
    forward, backward = contestant.calls(irregular)
    assert forward().shape == (1, 32, 4, 16)
    assert [x.shape for x in backward()] == [(1, 32, 4, 16), (1, 32, 8, 16), (1, 32, 8, 16)]
    with pytest.raises(NotImplementedError, match="irregular"):
        attention.cudnn().calls(irregular)
    nothing = dataclasses.replace(contestant, results=refuse)
    (failure,) = kernels.check(attention, nothing, head_size=16)
    assert failure == "it takes none of the checks; the last: not on this device"
