"""Measures what each format of the KV cache costs a run, or a Hugging Face folder."""

import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from hydrahead_jax.cache.by_layer import write_formats
from hydrahead_jax.dataclass_json import to_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import Haystack
from hydrahead_jax.json_file import plain
from hydrahead_jax.kv_quality import KVReportSettings, Texts, check, measure
from hydrahead_jax.kv_quality.tuned import best_c
from hydrahead_jax.local_path import local_path
from hydrahead_jax.resumable import open_folder
from train.data.text import Corpus, TextSource, load_corpus
from train.files.config_file import override
from train.files.progress import Progress
from train.files.run_folder import MODEL, write_json
from train.files.versions import versions
from train.reports.kv_page import write_kv_report
from train.run.saved_model import load_saved

FOLDER, INPUTS, REPORT, FORMATS = "kv_report", "inputs.json", "report.json", "kv_formats.json"


def kv_report(
    folder: Path,
    assignments: tuple[str, ...] = (),
    text: TextSource = TextSource(),
    out: Path | None = None,
    dtype: str = "float32",
    say: Callable[[str], None] = print,
) -> dict:
    """Measures all formats, writes report.json, report.md, a picture and the tuned formats.

    Args:
      folder: a finished run, or a Hugging Face folder.
      assignments: changes to the `KVReportSettings`, such as "documents=128".
      text: text to measure on; a folder's first half calibrates and its second half is scored.
      out: folder of the results; `kv_report` in the folder of a run if None.
      dtype: of the parameters and of the raw cache.
      say: takes progress and results.

    Raises:
      UserError: the folder holds no model, the settings do not suit it, or `out` holds another
        report or cannot be written.
    """
    folder = local_path(folder)
    out = _out(folder, out)
    settings = KVReportSettings()
    for assignment in assignments:
        settings = override(settings, assignment)
    model = load_saved(folder, dtype)
    corpus = load_corpus(model.tokenizer / "tokenizer.json", model.config)
    texts = _texts(corpus, text)
    check(model.config, corpus.tokenizer, texts, settings, corpus.stops)
    record = {"model": to_plain(model.config), "settings": to_plain(settings), "dtype": dtype}
    record["checksums"] = {
        "parameters": _checksum(jax.tree.leaves(model.params)),
        "text": _checksum([texts.calibration, texts.scored.tokens]),
    }
    advice = "choose another folder with --out"
    try:
        open_folder(out, INPUTS, plain(record), holds="report", advice=advice)
        with Progress(say) as progress:
            report = measure(
                model.config,
                model.params,
                corpus.tokenizer,
                texts,
                settings,
                folder=out / "parts",
                stops=corpus.stops,
                progress=progress,
            )
        report = {"of": folder.name, "inputs": record, "versions": versions()} | report
        write_json(out / REPORT, report)
        if report["tuned"]:
            write_formats(out / FORMATS, best_c(report["tuned"]))
        page = write_kv_report(out, report)
    except OSError as error:
        raise UserError(
            f"{error.filename or out} cannot be written: {error.strerror or error}; what was "
            "measured before is saved, so correct this and run the command again"
        ) from error
    say(page.read_text(encoding="utf-8").split("\n## ")[0])
    say(f"report: {page}")
    return report


def _out(folder: Path, out: Path | None) -> Path:
    if out is not None:
        return local_path(out)
    if not (folder / MODEL).is_file():
        raise UserError(
            f"{folder} is not the folder of a run, and what is measured is not written into a "
            "model's folder; name a folder for it with --out"
        )
    return folder / FOLDER


def _texts(corpus: Corpus, source: TextSource) -> Texts:
    if source.folder is None:
        calibration = corpus.haystack(source, "train").tokens
        return Texts(calibration=calibration, scored=corpus.haystack(source, "held_out"))
    both = corpus.haystack(source)
    calibration, scored = np.array_split(both.tokens, 2)
    documents = both.documents[len(both.documents) // 2 :]
    return Texts(calibration=calibration, scored=Haystack(documents, lambda: scored))


def _checksum(arrays) -> int:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
