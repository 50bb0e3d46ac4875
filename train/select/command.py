"""Makes a head plan of a model, with the scores behind it and the checks on them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydrahead_jax.dataclass_json import to_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.local_path import local_path
from hydrahead_jax.selection import HeadScores, Selection, SelectionSettings, receivers_kept, select
from hydrahead_jax.selection.checks.stability import stability
from hydrahead_jax.selection.probes.file import save_probes
from hydrahead_jax.selection.scores.scores import RETRIEVAL
from train.files.progress import Progress
from train.files.run_folder import PLAN, PROBES, open_run, write_json
from train.reports.select_page import write_select_report
from train.select.config import SelectConfig
from train.select.inputs import Subject, knock_out_settings, load_subject, make_plan
from train.select.knock_out import KNOCK_OUT, measure_knock_out

SCORES, ACCOUNT, STABILITY = "head_scores.csv", "selection.json", "stability.json"


def select_heads(config: SelectConfig, say: Callable[[str], None] = print) -> HeadPlan:
    """Scores all softmax heads, writes the plan, and checks both.

    Raises:
      UserError: the inputs are not right, the folder holds another selection, or it cannot be
        written.
    """
    subject = load_subject(config)
    folder = local_path(config.run)
    record = {key: value for key, value in to_plain(config).items() if key != "run"}
    with _writing(folder), Progress(say) as progress:
        open_run(folder, {"config": record})
        selection = _select(config, subject, config.settings, folder / "pairs", progress)
        plan = make_plan(config, subject.config, selection.scores)
        save_probes(folder / PROBES, selection.probes, selection.pairs, subject.corpus.tokenizer)
        selection.scores.save_csv(folder / SCORES)
        write_json(folder / ACCOUNT, selection.account)
        plan.save(folder / PLAN)
        knock_out = _knock_out(config, subject, selection, folder, progress)
        stable = _stability(config, subject, selection, folder, progress)
    with _writing(folder):
        report = write_select_report(
            folder, record, subject.config, selection, plan, knock_out, stable, config.kv_dtype
        )
    say(_sentence(subject, selection.scores, plan, config.kv_dtype))
    say(f"plan: {folder / PLAN}, report: {report}")
    return plan


def _select(
    config: SelectConfig, subject: Subject, settings: SelectionSettings, store: Path, progress
) -> Selection:
    return select(
        subject.config,
        subject.params,
        subject.corpus.tokenizer,
        subject.probing,
        settings,
        general=subject.general,
        store=store,
        mesh=subject.mesh,
        progress=progress,
    )


def _knock_out(
    config: SelectConfig, subject: Subject, selection: Selection, folder: Path, progress
) -> dict[str, Any] | None:
    if subject.questions is None:
        return None
    retrieval = [
        pairs
        for probe, pairs in zip(selection.probes, selection.pairs, strict=True)
        if probe.capability == RETRIEVAL
    ]
    return measure_knock_out(
        folder / KNOCK_OUT,
        subject.config,
        subject.params,
        subject.questions,
        selection.scores,
        retrieval,
        knock_out_settings(config, subject.config),
        progress=progress,
    )


def _stability(
    config: SelectConfig, subject: Subject, selection: Selection, folder: Path, progress
) -> dict[str, Any] | None:
    """Scores at the other lengths, too; a length at which the model fails is left out."""
    if config.stability is None:
        return None
    at_lengths, left_out = {}, {}
    for length in config.stability.lengths:
        settings = dataclasses.replace(config.settings, length=length, total=False)
        named = lambda stage, done, total, length=length: progress(
            f"length {length}, {stage}", done, total
        )
        try:
            store = folder / f"pairs_at_{length}"
            at_lengths[length] = _select(config, subject, settings, store, named).scores
        except UserError as error:
            left_out[str(length)] = str(error)
    softmax_LN = selection.scores.softmax_LN
    found = stability(selection.probes, selection.effects, softmax_LN, config.stability, at_lengths)
    found["lengths_left_out"] = left_out
    write_json(folder / STABILITY, found)
    return found


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}; what was "
            "measured before is saved, so correct this and run the command again"
        ) from error


def _sentence(subject: Subject, scores: HeadScores, plan: HeadPlan, kv_dtype: str) -> str:
    return (
        f"{plan.count} of {int(scores.softmax_LN.sum())} heads stay softmax, "
        f"{receivers_kept(scores, plan)} of {int(scores.receivers_LN.sum())} receivers among them; "
        f"they read {plan.surviving_kv_heads} KV heads, "
        f"{plan.kv_bytes_per_token(subject.config, kv_dtype)} bytes a token"
    )
