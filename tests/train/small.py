"""Provides a model, text and stages that train in seconds."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.config import Hydra
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.interop import save_hf_teacher
from hydrahead_jax.models import init_params
from hydrahead_jax.precision import training_policy
from tests.toy_config import toy_config
from train.commands.transfer import TransferConfig
from train.data.batches import DataConfig, NeedleData
from train.data.text import Corpus, TextSource
from train.data.tokenizer import save_tokenizer, train_tokenizer
from train.files.param_paths import flatten
from train.files.run_folder import METRICS
from train.run.loop import Job
from train.run.train_step import Teacher
from train.stage.optimizer import AdamW
from train.stage.stage import MIXERS, Stage

VOCAB = 300
TEACHER = toy_config(vocab=VOCAB, embed=16, mlp=32, head_dim=8, max_length=64)
STUDENT = dataclasses.replace(TEACHER, mixers=(Hydra(fa_heads=(1,)), Hydra(fa_heads=(0, 3))))


def write_texts(folder: Path) -> TextSource:
    """Writes twelve documents, some longer than a row of the stages below."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(12):
        text = "".join(f"def f_{i}_{j}(x):\n    return x + {j}\n" for j in range(1 + i % 5))
        (folder / f"{i:02d}.py").write_text(text)
    return TextSource(folder=str(folder))


def tokenizer() -> Tokenizer:
    return train_tokenizer(["def f(x): return x + 1\n"], vocab=VOCAB, keys=8, values=8)


def stages(text: TextSource, *, steps: int = 4, checkpoint_every: int = 2) -> tuple[Stage, ...]:
    """Returns the three stages of a transfer.

    Args:
      checkpoint_every: steps from one checkpoint to the next.
    """
    data = DataConfig(length=24, batch=2, text=text)

    def stage(name: str, loss, rate: float, **more) -> Stage:
        optim = AdamW(learning_rate=rate, warmup_steps=1)
        intervals = {"log_every": 1, "checkpoint_every": 2 * checkpoint_every}
        return Stage(name=name, loss=loss, steps=steps, data=data, optim=optim, **intervals, **more)

    return (
        stage("align", "align", 1e-2, trainable=MIXERS),
        stage("distill", "distill", 1e-2),
        stage("finetune", "next_token", 1e-3),
    )


def write_teacher(folder: Path, **options) -> dict:
    """Writes a random teacher as a Hugging Face folder with a tokenizer; returns its parameters."""
    params = init_params(TEACHER, jax.random.key(1))
    save_hf_teacher(folder, TEACHER, params, jnp.float32, **options)
    save_tokenizer(tokenizer(), folder, TEACHER.max_length)
    return params


def transfer_config(folder: Path, **options) -> TransferConfig:
    """Describes a transfer in `folder`; writes its teacher, plan and text if they are missing."""
    if not (folder / "teacher").exists():
        write_teacher(folder / "teacher")
    HeadPlan(fa_heads=((1,), (0, 3)), query_heads=4, kv_heads=2, strategy="test").save(
        folder / "head_plan.json"
    )
    return TransferConfig(
        run=str(folder / "run"),
        teacher=str(folder / "teacher"),
        head_plan=str(folder / "head_plan.json"),
        stages=stages(write_texts(folder / "text"), **options),
        calibration_rows=4,
    )


def write_config(folder: Path, **options) -> str:
    """Writes a config file for `transfer_config`, as the command line takes it."""
    transfer_config(folder, **options)
    path = folder / "experiment.py"
    path.write_text(
        "from pathlib import Path\n"
        "from tests.train import small\n\n\n"
        "def config():\n"
        f"    return small.transfer_config(Path({str(folder)!r}), **{options!r})\n"
    )
    return str(path)


def with_needles(config: TransferConfig) -> TransferConfig:
    """Returns the same config with needle documents in every stage."""
    needles = NeedleData(share=0.5, lengths=(20, 24), needles=(1, 1))
    return dataclasses.replace(
        config,
        stages=tuple(
            dataclasses.replace(stage, data=dataclasses.replace(stage.data, needles=needles))
            for stage in config.stages
        ),
    )


def logged(run: Path) -> list[dict]:
    """Returns what a run has logged of its steps; a line that is being written does not count."""
    path = run / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def assert_bitwise(actual: dict, expected: dict) -> None:
    """Checks that parameters are equal bit by bit."""
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(np.asarray(actual[path]), np.asarray(leaf), err_msg=path)


def job(folder: Path, text: TextSource, stages: tuple[Stage, ...], say=print) -> Job:
    teacher_params = init_params(TEACHER, jax.random.key(1))
    return Job(
        folder=folder,
        stages=stages,
        model=STUDENT,
        initial=lambda: init_params(STUDENT, jax.random.key(2)),
        corpus=Corpus(tokenizer()),
        seed=0,
        policy=training_policy(),
        teacher=lambda: Teacher(TEACHER, teacher_params),
        say=say,
    )
