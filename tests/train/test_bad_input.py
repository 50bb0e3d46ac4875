"""Checks that each mistake gives one sentence, exit code 1, and no run folder."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hydrahead_jax.head_plan import HeadPlan
from tests.train import small
from train.__main__ import main
from train.commands import transfer as transfer_module
from train.run.loop import Result


@pytest.fixture
def work(tmp_path):
    small.write_config(tmp_path)
    return tmp_path


def refused(work, capsys, *assignments: str) -> str:
    """Returns the sentence that `transfer` ends with."""
    assert main(["transfer", str(work / "experiment.py"), *assignments]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert output.out == ""
    assert not (work / "run").exists()
    return output.err


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stages.align.optim.lr=1", "AdamW has no field 'lr'; use one of learning_rate, "),
        ("stages.align.steps=ten", "stages.align.steps: 'ten' must be an integer"),
        ("stages.distill.data.length=65", "'distill': rows of 65 tokens are longer than the 64"),
        ("stages.align.slots_weight=1.0", "'align': slots_weight=1.0 must be 0 or more, and 0"),
        ("stages.distill.data.text.folder=WORK/empty", "there is no text in WORK/empty"),
        ("stages.distill.data.text.folder=WORK/none", "there is no data folder WORK/none"),
        ("run=WORK/text", "WORK/text exists and holds no run"),
        ("head_plan=WORK/none.json", "WORK/none.json is not a head plan"),
    ],
)
def test_bad_settings(work, capsys, assignment, message):
    (work / "empty").mkdir()
    sentence = refused(work, capsys, assignment.replace("WORK", str(work)))
    assert message in sentence.replace(str(work), "WORK")


def test_missing_shard(work, capsys):
    teacher = work / "teacher"
    (teacher / "model.safetensors").unlink()
    small.write_teacher(teacher, shard_bytes=4096)
    shard = sorted(teacher.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refused(work, capsys)


def test_weight_of_the_wrong_shape(work, capsys):
    path = work / "teacher" / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.self_attn.q_proj.weight"
    weights[name] = np.ascontiguousarray(weights[name][:-1])
    save_file(weights, path)
    sentence = refused(work, capsys)
    assert name in sentence and "(31, 16) in place of (32, 16)" in sentence


@pytest.fixture
def begun(work, capsys, monkeypatch) -> str:
    """Begins a run, and returns the assignment that names its folder."""
    assignment = f"run={work / 'other'}"
    with monkeypatch.context() as patch:
        patch.setattr(transfer_module, "run", lambda job: Result({}, False))
        assert main(["transfer", str(work / "experiment.py"), assignment]) == 0
    capsys.readouterr()
    return assignment


def test_output_folder_of_a_different_run(work, capsys, begun):
    sentence = refused(work, capsys, begun, "seed=3", "stages.align.optim.b1=0.5")
    assert f"{work / 'other'} holds a different run: " in sentence
    assert "config.stages.0.optim.b1 is 0.9 there and 0.5 here" in sentence
    assert "config.seed is 0 there and 3 here" in sentence


def test_output_folder_after_the_teacher_changed(work, capsys, begun):
    path = work / "teacher" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] += 1
    save_file(weights, path)
    assert "teacher_checksum is" in refused(work, capsys, begun)


def test_head_plan_of_another_model(work, capsys):
    path = work / "other_plan.json"
    HeadPlan(fa_heads=((1,),), query_heads=4, kv_heads=2, strategy="x").save(path)
    assert "the head plan is for" in refused(work, capsys, f"head_plan={path}")


def test_needles_without_symbols(work, capsys):
    """The tokenizer was not made by `pretrain`."""
    path = work / "teacher" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if "key" not in t["content"]]
    tokenizer["model"]["vocab"] = {
        token.replace("<key_", "<other_"): i for token, i in tokenizer["model"]["vocab"].items()
    }
    path.write_text(json.dumps(tokenizer))
    config = (work / "experiment.py").read_text()
    config = config.replace("small.transfer_config(", "small.with_needles(small.transfer_config(")
    (work / "experiment.py").write_text(config.rstrip() + ")\n")
    assert "has no <key_00> and <val_00> symbols" in refused(work, capsys)


def test_evaluate_what_is_no_model(work, capsys):
    assert main(["evaluate", str(work / "text")]) == 1
    assert "config.json" in capsys.readouterr().err


def test_missing_config_file(capsys):
    assert main(["transfer", "configs/none.py"]) == 1
    assert "there is no config file configs/none.py" in capsys.readouterr().err


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["transform"])
    assert exit_.value.code == 2
