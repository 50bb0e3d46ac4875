"""Measures retrieval and text loss of a run, or of a Hugging Face folder."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from hydrahead_jax.evals import EvalSettings, evaluate
from hydrahead_jax.json_file import check_target, dumps
from hydrahead_jax.local_path import local_path
from train.data.text import TextSource, load_corpus
from train.files.config_file import override
from train.files.run_folder import write_json
from train.run.saved_model import load_saved


def evaluate_saved(
    folder: Path,
    assignments: tuple[str, ...] = (),
    text: TextSource = TextSource(),
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """Evaluates at one, two and four times the trained length, unless `lengths` is assigned.

    Args:
      folder: a finished run, or a Hugging Face folder.
      assignments: changes to the `EvalSettings`, such as "documents=128".
      text: held-out text.
      out: file for the report, JSON.
      say: takes the report.

    Raises:
      UserError: the folder holds no model, the settings do not suit it, or `out` cannot be
        written.
    """
    if out is not None:
        check_target(out := local_path(out))
    model = load_saved(folder)
    longest = model.config.max_length
    settings = EvalSettings(lengths=(longest, 2 * longest, 4 * longest))
    for assignment in assignments:
        settings = override(settings, assignment)
    corpus = load_corpus(model.tokenizer / "tokenizer.json", model.config)
    haystack = corpus.haystack(text, "held_out")
    report = evaluate(
        model.config, model.params, corpus.tokenizer, haystack, settings, stops=corpus.stops
    )
    report = {"settings": dataclasses.asdict(settings), **report}
    if out is not None:
        write_json(out, report)
    say(dumps(report, indent=2))
    return report
