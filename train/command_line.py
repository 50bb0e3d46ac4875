"""Defines the commands; each imports what it needs when it is called, so that --help is quick."""

import functools
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hydrahead_jax.local_path import local_path

ConfigFile = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
Assignments = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="KEY=VALUE")]
Sources = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]

_PRETRAIN = "train.commands.pretrain.PretrainConfig"
_TRANSFER = "train.commands.transfer.TransferConfig"
CONFIGS = {
    "pretrain": _PRETRAIN,
    "select": "train.select.config.SelectConfig",
    "cache-teacher": _TRANSFER,
    "transfer": _TRANSFER,
    "plan": _TRANSFER,
    "evaluate": "hydrahead_jax.evals.EvalSettings",
    "kv-report": "hydrahead_jax.kv_quality.KVReportSettings",
    "demo": "train.evidence.demo.DemoConfig",
    "evidence": "train.evidence.evidence.EvidenceConfig",
}
"""Names the class of each command's config, which `key=value` changes."""


def prepare(
    sources: Sources,
    tokenizer: Path,
    out: Path,
    workers: int | None = None,
    shard_tokens: int = 2**25,
    text_field: str = "text",
    held_out: float = 0.0,
    split: Literal["train", "held_out"] = "train",
    skip_bad: bool = False,
) -> None:
    """Tokenise text once into shards for training; continues where it was interrupted.

    Args:
        sources: Files, or folders of them: .jsonl, .json, and .txt, .md and .py of one document
            each (all of them also .gz, .bz2, .xz and .zst), .parquet, .arrayrecord.
        tokenizer: Folder with the tokenizer.json of the model, or that file.
        out: Folder of the shards.
        workers: Number of processes; by default the number of cores. The result is the same.
        shard_tokens: A shard ends with the document that reaches them.
        text_field: Field of JSON objects, or column of Parquet files, that holds the text.
        held_out: Share of the documents to set apart, by a hash of their text.
        split: Which documents to write, those for training or those held out.
        skip_bad: Leave out records that cannot be used, and count them, instead of stopping.
    """
    from train.prepare.command import prepare as command
    from train.prepare.workers import cores

    command(
        sources,
        tokenizer,
        out,
        workers=cores() if workers is None else workers,
        shard_tokens=shard_tokens,
        text_field=text_field,
        held_out=held_out,
        split=split,
        skip_bad=skip_bad,
        say=_say,
    )


def pretrain(config: ConfigFile, assignments: Assignments = ()) -> None:
    """Train a teacher, or a small hybrid, from scratch and save it as a Hugging Face folder.

    Args:
        config: Python file whose config() returns a PretrainConfig.
        assignments: Changes to the config, such as stages.long.steps=100; --fields lists all.
    """
    from train.commands.pretrain import pretrain as command

    command(_load("pretrain", config, assignments), say=_say)


def select(config: ConfigFile, assignments: Assignments = ()) -> None:
    """Score a teacher's heads and write the plan of those that stay softmax.

    Args:
        config: Python file whose config() returns a SelectConfig.
        assignments: Changes to the config, such as ratio=7:1; --fields lists all.
    """
    from train.select.command import select_heads

    select_heads(_load("select", config, assignments), say=_say)


def transfer(
    config: ConfigFile,
    assignments: Assignments = (),
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Turn a teacher into a hybrid, stage by stage; continues a run that was interrupted.

    Args:
        config: Python file whose config() returns a TransferConfig.
        assignments: Changes to the config, such as stages.align.optim.learning_rate=3e-4;
            --fields lists all.
        coordinator: host:port of the first of several processes, the same on all of them; "auto"
            on Cloud TPU. SLURM, Open MPI and GKE need none of the three.
        processes: Number of processes.
        process: Index of this process, from 0.
    """
    from train import distributed

    distributed.start(coordinator, processes, process)
    from train.commands.transfer import transfer as command

    command(_load("transfer", config, assignments), say=distributed.say)
    distributed.finish()


def cache_teacher(
    config: ConfigFile,
    assignments: Assignments = (),
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Write the teacher's most probable tokens for the stages that read them from a folder.

    Args:
        config: Python file whose config() returns a TransferConfig; a stage has a teacher_cache.
        assignments: Changes to the config, such as stages.distill.steps=100; --fields lists all.
        coordinator: host:port of the first of several processes, the same on all of them; "auto"
            on Cloud TPU. SLURM, Open MPI and GKE need none of the three.
        processes: Number of processes.
        process: Index of this process, from 0.
    """
    from train import distributed

    distributed.start(coordinator, processes, process)
    from train.commands.cache_teacher import cache_teacher as command

    command(_load("cache-teacher", config, assignments), say=distributed.say)
    distributed.finish()


def plan(
    config: ConfigFile,
    assignments: Assignments = (),
    target: str = "v5p:4x4x4",
    json: Path | None = None,
    alike: bool = False,
) -> None:
    """Plan all stages for machines you need not have: memory, FLOP, traffic and least time.

    Args:
        config: Python file whose config() returns a TransferConfig or a PretrainConfig.
        assignments: Changes to the config, such as stages.finetune.mesh.fsdp=32; --fields lists
            all of a TransferConfig.
        target: A slice such as v5p:8x8x8 (v4, v5e, v5p, v6e, tpu7x), or h200, h200:8.
        json: JSON file to write all figures to.
        alike: Without a head plan, assume the same heads in every layer, which compiles faster.
    """
    from train.plan.command import plan as command

    loaded = _load("plan", config, assignments, _PRETRAIN)
    command(loaded, target, json, alike=alike, say=_say)


def evaluate(
    run: Folder,
    assignments: Assignments = (),
    text: Path | None = None,
    text_field: str = "text",
    skip_bad: bool = False,
    out: Path | None = None,
) -> None:
    """Measure retrieval and text loss of a run, or of a Hugging Face folder.

    Args:
        run: Folder of a finished run, or Hugging Face folder.
        assignments: Changes to the EvalSettings, such as documents=128; --fields lists all.
        text: Held-out text, a file or folder as `prepare` takes; the held-out part of the standard
            library if absent.
        text_field: Field of JSON objects, or column of Parquet files, that holds the text.
        skip_bad: Leave out records that cannot be used, and count them, instead of stopping.
        out: File for the report, JSON.
    """
    from train.commands.evaluate import evaluate_saved
    from train.data.text import TextSource

    folder = None if text is None else str(text)
    source = TextSource(folder=folder, text_field=text_field, skip_bad=skip_bad)
    evaluate_saved(run, assignments, source, out, say=_say)


def kv_report(
    run: Folder,
    assignments: Assignments = (),
    text: Path | None = None,
    text_field: str = "text",
    skip_bad: bool = False,
    out: Path | None = None,
    dtype: str = "float32",
) -> None:
    """Measure what each format of the KV cache costs, and tune UltraQuant's to the model.

    Args:
        run: Folder of a finished run, or Hugging Face folder.
        assignments: Changes to the KVReportSettings, such as documents=128; --fields lists all.
        text: Text, a file or folder as `prepare` takes, of which the first half calibrates and the
            second is scored; the standard library's, training and held-out part, if absent.
        text_field: Field of JSON objects, or column of Parquet files, that holds the text.
        skip_bad: Leave out records that cannot be used, and count them, instead of stopping.
        out: Folder of the results; kv_report in the folder of the run if absent. A repeated command
            continues there.
        dtype: Dtype of the parameters and of the raw cache: float32 or bfloat16.
    """
    from train.commands.kv_report import kv_report as command
    from train.data.text import TextSource

    folder = None if text is None else str(text)
    source = TextSource(folder=folder, text_field=text_field, skip_bad=skip_bad)
    command(run, assignments, source, out, dtype, say=_say)


def export(
    run: Folder,
    out: Path,
    dtype: str = "float32",
    shard_size: str = "5GB",
    check: bool = True,
    kv_cache: str | None = None,
) -> None:
    """Write a run's hybrid as a Hugging Face folder that PyTorch loads.

    Args:
        run: Folder of a finished run.
        out: New folder, or an earlier export, which is replaced.
        dtype: Dtype of the weights: float32 or bfloat16.
        shard_size: Largest size of a weight file, such as 5GB or 500MB.
        check: Compare with PyTorch, where it is installed; an export that computes something else
            is not written.
        kv_cache: Format in which PyTorch stores keys and values, such as ultraquant; unchanged
            by default.
    """
    from train.commands.export import export_run, parse_size

    export_run(
        run,
        out,
        say=_say,
        dtype=dtype,
        shard_bytes=parse_size(shard_size),
        check=check,
        kv_cache=kv_cache,
    )


def demo(config: ConfigFile, assignments: Assignments = ()) -> None:
    """Score, convert, evaluate and export a small teacher, and write a report.

    Args:
        config: Python file whose config() returns a DemoConfig.
        assignments: Changes to the config; --fields lists all.
    """
    from train.evidence.demo import demo as command

    command(_load("demo", config, assignments))


def evidence(config: ConfigFile, assignments: Assignments = ()) -> None:
    """Repeat the demo's comparison over teachers and draws, or compare models by recall.

    Args:
        config: Python file whose config() returns an EvidenceConfig or a RecallConfig.
        assignments: Changes to the config; --fields lists all of an EvidenceConfig.
    """
    from train.evidence.evidence import EvidenceConfig, evidence
    from train.evidence.recall import recall

    loaded = _load("evidence", config, assignments, "train.evidence.recall.RecallConfig")
    evidence(loaded) if isinstance(loaded, EvidenceConfig) else recall(loaded)


def print_fields(command: str) -> None:
    """Prints the fields that `key=value` can set for a command."""
    from train.files.config_fields import field_lines

    print("NAME is the name of an element of a list, INDEX its number from 0.")
    print(*field_lines(pkgutil.resolve_name(CONFIGS[command])), sep="\n")


def _load(command: str, path: str, assignments: tuple[str, ...], *others: str):
    from train.files.config_file import load_config

    kind, *others = map(pkgutil.resolve_name, (CONFIGS[command], *others))
    return load_config(path, kind, assignments, *others)


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _with_local_paths(command: Callable) -> Callable:
    """Wraps a command so that it refuses addresses before it does anything."""

    @functools.wraps(command)
    def checked(*args, **kwargs):
        for value in (*args, *kwargs.values()):
            for path in value if isinstance(value, tuple) else (value,):
                if isinstance(path, Path):
                    local_path(path)
        command(*args, **kwargs)

    return checked


COMMANDS = {
    command.__name__.replace("_", "-"): _with_local_paths(command)
    for command in (
        prepare,
        pretrain,
        select,
        cache_teacher,
        transfer,
        plan,
        evaluate,
        kv_report,
        export,
        demo,
        evidence,
    )
}
