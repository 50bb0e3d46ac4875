"""Checks the planner: targets, assumptions, memory and floors, tables, and refusals."""

import dataclasses
import json
import re

import pytest

from configs import nha_340m
from hydrahead_jax.config import qwen3
from hydrahead_jax.errors import UserError
from hydrahead_jax.sharding import MeshConfig
from pallas_kernels.hardware.isolated import IsolatedError
from tests.train import small
from train.__main__ import main
from train.plan import command, models, target
from train.plan.compile import Arguments, Compiled, needed_bytes
from train.plan.stage_plan import GIB, refused, stage_plan
from train.plan.table import lines, scaled, terminal_table
from train.plan.target import parse_target
from train.stage.flops import step_flops


@pytest.fixture(autouse=True)
def compilers(monkeypatch):
    """Makes both compilers look installed; what is tested here does not call them."""
    monkeypatch.setattr(target, "_tpu_compiler", lambda: True)
    monkeypatch.setattr(target.gpu, "missing_tools", list)


def compiled(**changes) -> Compiled:
    arguments = Arguments(trained=2**20, frozen=0, optimizer=2**21, teacher=0, batch=64)
    fields = {"devices": 4, "arguments": arguments, "padding": 0, "results": 0}
    fields |= {"temporaries": 3 * 2**20, "sent": {"all-gather": 1e6}, "uncounted_loops": 0}
    return Compiled(**{**fields, "trace_s": 1.0, "compile_s": 2.0, **changes})


def planned(found: Compiled, **changes):
    stage = dataclasses.replace(small.stages(None)[2], **changes)
    place = parse_target("v5e:2x2")
    return stage_plan(stage, MeshConfig(fsdp=4), place, small.STUDENT, small.TEACHER, found)


@pytest.mark.parametrize("name", ["v4:4x4x4", "v5e:16x16", "tpu7x:2x2x1", "h200", "h200:8"])
def test_targets(name):
    assert parse_target(name).chip.memory > 15 * GIB


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v9:4x4", "unknown target 'v9:4x4'; use one such as"),
        ("v5p", "unknown target 'v5p'; use one such as"),
        ("h200:9", "a node must have 1 to 8 H200s"),
    ],
)
def test_unknown_targets(name, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_target(name)


def test_compilers_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(target, "_tpu_compiler", lambda: False)
    with pytest.raises(UserError, match="needs libtpu: pip install"):
        parse_target("v5e:2x2")
    monkeypatch.setattr(target.gpu, "missing_tools", lambda: ["ptxas"])
    with pytest.raises(UserError, match="needs ptxas: pip install"):
        parse_target("h200")


def test_slice_that_the_compiler_refuses(monkeypatch):
    def refuse(*_, **__):
        raise IsolatedError("Traceback\nValueError: Topology layout 3x3 is not divisible")

    monkeypatch.setattr(command, "run_isolated", refuse)
    with pytest.raises(UserError, match=r"refuses target 'v5e:3x3': Topology layout 3x3 is not"):
        command.device_count(parse_target("v5e:3x3"))


@pytest.mark.parametrize(("heads", "multiple"), [(112, 1), (56, 1), (280, 1), (56, 2), (3, 1)])
def test_assumed_plan_has_about_the_heads_in_two_kinds_of_layers(heads, multiple):
    teacher = qwen3("1.7b")
    plan = models.assumed_plan(teacher, heads, multiple)
    plan.check(teacher, tensor_multiple=multiple)
    assert len(set(plan.fa_heads)) <= 2
    assert plan.count == max(heads, multiple * teacher.layers)


def test_models_are_those_on_disk_or_assumed(tmp_path):
    config = small.transfer_config(tmp_path)
    assert models.models_of(config) == (small.STUDENT, small.TEACHER, ())
    config = dataclasses.replace(config, head_plan="none")
    assert "no head plan yet: 2 of 8 heads" in models.models_of(config).assumptions[0]
    config = dataclasses.replace(config, teacher="none")
    with pytest.raises(UserError, match=r"no teacher in none; .* teacher_size=1\.7b"):
        models.models_of(config)
    config = dataclasses.replace(config, teacher_size="3b")
    with pytest.raises(UserError, match="teacher_size: no Qwen3 of size '3b'"):
        models.models_of(config)


def test_memory_and_floors_add_up():
    plan = planned(compiled())
    assert plan.fits and plan.advice is None
    assert plan.memory.gradients == 2**20 and plan.memory.activations == 2 * 2**20
    assert plan.memory.total == (1 + 2 + 3) * 2**20 + 64
    flops = step_flops(small.stages(None)[2], small.STUDENT, None)
    assert plan.compute_s == flops.at_least / 4 / 197e12
    assert plan.memory_s == (2 * 3 * 2**20 + 64 + 2 * 3 * 2**20) / 819e9
    assert plan.network_s == 1e6 / 200e9
    assert plan.step_s == max(plan.compute_s, plan.memory_s, plan.network_s)
    assert plan.tokens_a_day == pytest.approx(48 / plan.step_s * 86400)
    assert plan.hours == 4 * plan.step_s / 3600


def test_stage_that_is_too_large_says_what_to_change():
    words = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (256.25G) exceeds"
    assert needed_bytes(words) == 256.25 * GIB
    assert needed_bytes("RESOURCE_EXHAUSTED: Used 1.5G of 1G hbm") == 1.5 * GIB
    plan = planned(compiled(refusal=words, temporaries=needed_bytes(words), sent={}))
    assert not plan.fits and plan.step_s is None
    assert plan.advice.startswith('activations take the most: try remat="kernels"')
    assert "microbatches=2" in plan.advice
    full = planned(compiled(refusal=words, temporaries=None, sent={}), remat="full")
    assert "remat" not in full.advice and dict(lines(full))["memory"].startswith("more than")
    large = Arguments(trained=5 * GIB, frozen=0, optimizer=10 * GIB, teacher=0, batch=0)
    assert "larger fsdp or tensor" in planned(compiled(arguments=large)).advice


def test_table_and_record():
    stage = small.stages(None)[0]
    found = [planned(compiled()), refused(stage, MeshConfig(), "fsdp is 3, and so on")]
    rows = dict(lines(found[0]))
    assert rows["verdict"] == "fits" and rows["sent: all-gather"] == "0.00 GiB"
    assert dict(lines(found[1]))["verdict"] == "REFUSED"
    table = terminal_table(found, "title")
    assert [column.header for column in table.columns] == ["on each device", "finetune", "align"]
    kept = command.record(parse_target("h200"), models.Models(None, None, ("a",)), found)
    assert json.loads(json.dumps(kept))["stages"][1]["refusal"] == "fsdp is 3, and so on"
    assert scaled(3.4e15) == "3.4 P" and scaled(12.0) == "12"


def test_a_model_from_scratch_has_no_teacher(monkeypatch, capsys):
    monkeypatch.setattr(command, "device_count", lambda target: 64)
    monkeypatch.setattr(command, "_watched", lambda name, task, say: compiled(devices=64))
    config = nha_340m.config()
    assert models.models_of(config) == (config.model, None, ())
    (found,) = command.plan(config, "v5p:4x4x4")
    assert found.fits and found.flops_by_kind["slots"] > 0
    assert "pretrain" in capsys.readouterr().out


def test_mesh_that_does_not_fit_is_one_sentence_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    path = small.write_config(tmp_path)
    monkeypatch.setattr(command, "device_count", lambda target: 4)
    monkeypatch.setattr(command, "_watched", lambda name, task, say: compiled())
    out = tmp_path / "plan.json"
    options = ["--target", "v5e:2x2", "--json", str(out)]
    assert main(["plan", path, "mesh.fsdp=3", *options]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"stage 'align': .*fsdp is 3, which does not divide", printed)
    assert "nearest that do: " in printed
    assert main(["plan", path, "mesh.fsdp=2", *options]) == 0
    stages = json.loads(out.read_text())["stages"]
    assert [stage["fits"] for stage in stages] == [True, True, True]
