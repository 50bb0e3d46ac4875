"""Runs the comparison by recall on models of a few parameters, and continues it."""

import dataclasses
import shutil

import numpy as np
import pytest

from hydrahead_jax.config import FullAttention, ModelConfig, NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.mqar import MqarSymbols, mqar_documents
from hydrahead_jax.json_file import read_json
from tests import quick
from tests.train.small import logged
from train.__main__ import main
from train.commands.pretrain import Scales
from train.data.batches import DataConfig, make_batches
from train.data.mqar import MqarData
from train.evidence import recall as command
from train.evidence.recall_model import Variant
from train.evidence.recall_task import RecallTask
from train.stage.optimizer import AdamW
from train.stage.stage import Stage

SYMBOLS = MqarSymbols(keys=3, values=3)


def tiny(out: str, *, steps: int = 2) -> command.RecallConfig:
    data = DataConfig(
        length=8,
        batch=4,
        mqar=MqarData(pairs=(1, 2), symbols=SYMBOLS),
        text_weight=0.0,
        answer_weight=1.0,
    )
    stage = Stage(
        name="recall",
        loss="next_token",
        steps=steps,
        data=data,
        optim=AdamW(learning_rate=1e-2, warmup_steps=1),
        log_every=1,
        checkpoint_every=2,
    )
    task = RecallTask(
        name="mqar",
        model=ModelConfig(
            vocab=SYMBOLS.vocab,
            embed=8,
            mlp=8,
            query_heads=1,
            kv_heads=1,
            head_dim=4,
            mixers=(FullAttention(),),
            max_length=8,
        ),
        stages=(stage,),
        lengths=(8,),
        counts=(1, 2, 3),
        documents=4,
        batch=4,
    )
    return command.RecallConfig(
        out=out,
        tasks=(task,),
        variants=(Variant(name="nha 2", mixer=NativeHybrid(window=2, slots=2)),),
        seeds=(0,),
        scales=Scales(),
        windows=(0, 8),
    )


def write_config(folder, **options) -> str:
    path = folder / "experiment.py"
    path.write_text(
        "from tests.train.evidence.test_recall import tiny\n\n\n"
        f"def config():\n    return tiny({str(folder / 'out')!r}, **{options!r})\n"
    )
    return str(path)


@pytest.fixture
def one_process(monkeypatch):
    """Runs the models in this process, which has JAX loaded."""
    inline = lambda tasks, _: {name: task.work(*task.arguments) for name, task in tasks.items()}
    monkeypatch.setattr(command, "run_parallel", inline)
    monkeypatch.setenv("XLA_FLAGS", quick.FLAGS)


def test_the_command_trains_measures_and_continues(tmp_path, one_process):
    config = write_config(tmp_path)
    assert main(["evidence", config]) == 0
    out = tmp_path / "out"
    result = read_json(out / "recall.json")
    scores = result["tasks"]["mqar"]["nha 2"]["0"]
    assert list(scores["scores"]) == ["8"] and list(scores["windows"]) == ["0", "8"]
    assert list(scores["scores"]["8"]) == ["1", "2"]  # three pairs take twelve tokens
    for of in (scores["scores"]["8"], scores["windows"]["0"], scores["windows"]["8"]):
        assert all(0 <= one["tokens"] <= 1 and one["loss"] > 0 for one in of.values())
    assert (out / "windows_mqar.png").stat().st_size > 1000
    text = (out / "recall.md").read_text()
    assert "| nha 2 | " in text and "window changed after training" in text
    steps = logged(out / "mqar/nha_2-0")
    assert [line["step"] for line in steps] == [1, 2] and "answer_accuracy" in steps[0]

    # As if it had been killed after the first of two steps, before anything was measured.
    run = out / "mqar/nha_2-0"
    shutil.rmtree(run / "checkpoints/2")
    (run / "scores.json").unlink()
    assert main(["evidence", config]) == 0
    assert read_json(out / "recall.json")["tasks"] == result["tasks"]
    assert [line["loss"] for line in logged(run)] == [line["loss"] for line in steps]

    # A finished run is not trained again.
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    assert main(["evidence", config]) == 0
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", [{}, {"fillers": 2, "needles": True}])
def test_batches_are_made_by_index_and_no_test_document_is_a_training_one(kind):
    symbols = dataclasses.replace(SYMBOLS, **kind)
    data = dataclasses.replace(
        tiny("out").tasks[0].stages[0].data, mqar=MqarData(pairs=(1, 2), symbols=symbols)
    )
    batches, again = (make_batches(data, None, 5) for _ in range(2))
    first, second = next(batches), next(batches)
    again.set_state({"batch": 1})
    np.testing.assert_array_equal(next(again).tokens_BT, second.tokens_BT)
    rows = next(make_batches(data, None, 5, rows=(2, 0)))
    np.testing.assert_array_equal(rows.tokens_BT, first.tokens_BT[[2, 0]])
    assert (first.tokens_BT != second.tokens_BT).any()
    assert (next(make_batches(data, None, 6)).tokens_BT != first.tokens_BT).any()
    np.testing.assert_array_equal(first.loss_weight_BT.sum(axis=1) >= 1, True)
    # The same number stands for the seed of both.
    large = MqarSymbols(keys=500, values=500, **kind)
    data = dataclasses.replace(data, length=32, mqar=MqarData(pairs=(8, 8), symbols=large))
    trained = {tuple(row) for row in next(make_batches(data, None, 0)).tokens_BT}
    tested, _ = mqar_documents(large, 0, documents=4, pairs=8, length=32)
    assert not trained & {tuple(row) for row in tested}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": (1, 1)}, "seeds=(1, 1) must be different"),
        ({"windows": (-1,)}, "windows=(-1,) must be 0 or more"),
        ({"variants": ()}, "variants need different names"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(change, words):
    with pytest.raises(UserError) as error:
        command.recall(dataclasses.replace(tiny("out"), **change))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"counts": (4,), "lengths": (16,)}, "lower the pairs"),
        ({"lengths": ()}, "at least one length"),
        (
            {"model": dataclasses.replace(tiny("out").tasks[0].model, vocab=9)},
            "must have data.mqar",
        ),
    ],
)
def test_a_task_that_cannot_be_measured_is_refused(change, words):
    config = tiny("out")
    task = dataclasses.replace(config.tasks[0], **change)
    with pytest.raises(UserError, match=words):
        command.check(dataclasses.replace(config, tasks=(task,)))


def test_documents_that_do_not_fit_a_row_are_refused(tmp_path, one_process, capsys):
    config = write_config(tmp_path)
    assert main(["evidence", config, "tasks.mqar.stages.recall.data.length=7"]) == 1
    assert "2 pairs and their queries need 8 tokens" in capsys.readouterr().err
