"""Measures how fast text is prepared, planned and packed: `python -m benchmarks.data`.

The text is the standard library's own sources, over and over, so that only the speed means
anything; the tokenizer is trained on it. Lengths for planning are drawn: log-normal around 500
tokens, as web text has them.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hydrahead_jax.json_file import dumps
from pallas_kernels.report.provenance import provenance
from train.data.batches import DataConfig, make_batches
from train.data.prepared.folder import PreparedFolder, PreparedText
from train.data.prepared.packing import make_plan
from train.data.stdlib_text import stdlib_documents
from train.data.text import Corpus
from train.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from train.prepare.command import prepare
from train.prepare.workers import cores

RESULT = Path(__file__).parent / "results" / "data_2_cpu_cores.json"
PACKINGS = ("best_fit", "split")
BATCHES = {512: 32, 4096: 8, 16384: 4}
"""Rows of a batch, by their length."""
_VOCAB = 8192
_BATCHES_BEFORE = 5
_SHORT_DOCUMENT = 2000


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_source(folder / "text.jsonl", options.megabytes)
        prepared = measure_prepare(source, folder)
        text = PreparedFolder(folder / "out")
        corpus = Corpus(load_tokenizer(folder / "tokenizer" / "tokenizer.json"))
        packed = [
            measure_rows(text.path, corpus, packing, length, options.seconds)
            for packing in PACKINGS
            for length in BATCHES
        ]
    record = {
        "made": provenance(),
        "machine": platform.processor() or platform.machine(),
        "cores": cores(),
        "load_before": round(os.getloadavg()[0], 1),
        "tokens_of_the_text": text.manifest["tokens"],
        "documents": text.manifest["documents"],
        "prepare": prepared,
        "rows": packed,
        "plans": [
            measure_plan(count, packing, length)
            for count in options.documents
            for packing in PACKINGS
            for length in BATCHES
        ],
    }
    options.out.write_text(dumps(record, indent=1) + "\n")
    print(table(record))


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="benchmarks.data", description=__doc__)
    options.add_argument("--megabytes", type=int, default=64, help="of text")
    options.add_argument("--seconds", type=float, default=5.0, help="of reading, for each row")
    options.add_argument(
        "--documents", type=int, nargs="*", default=(10**6, 10**7), help="that are planned"
    )
    options.add_argument("--out", type=Path, default=RESULT, help="JSON file")
    return options


def write_source(path: Path, megabytes: int) -> Path:
    """Writes JSONL of pieces of source files, most of them short."""
    rng = np.random.default_rng(0)
    text = "\n".join(stdlib_documents("train"))
    with path.open("w") as file:
        while file.tell() < megabytes * 10**6:
            size = int(np.clip(rng.lognormal(np.log(_SHORT_DOCUMENT), 1.1), 20, len(text) // 8))
            start = int(rng.integers(len(text) - size))
            file.write(json.dumps({"text": text[start : start + size]}) + "\n")
    return path


def measure_prepare(source: Path, folder: Path) -> dict:
    tokenizer = train_tokenizer(stdlib_documents("train"), vocab=_VOCAB, keys=8, values=8)
    save_tokenizer(tokenizer, folder / "tokenizer", 4096)
    began, cpu = time.monotonic(), _cpu_seconds()
    manifest = prepare(
        (source,),
        folder / "tokenizer",
        folder / "out",
        workers=cores(),
        shard_tokens=2**21,
        say=lambda sentence: None,
    )
    seconds = time.monotonic() - began
    return {
        "workers": cores(),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(manifest["tokens"] / seconds),
        "tokens_per_cpu_second": round(manifest["tokens"] / (_cpu_seconds() - cpu)),
        "source_bytes_per_second": round(source.stat().st_size / seconds),
    }


def _cpu_seconds() -> float:
    """Returns the CPU seconds of this process and of its child processes that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(w)[:2]) for w in who)


def measure_rows(folder: Path, corpus: Corpus, packing: str, length: int, seconds: float) -> dict:
    """Measures tokens per second, without padding, of the iterator that training reads."""
    data = DataConfig(
        length=length,
        batch=BATCHES[length],
        prepared=(PreparedText(folder=str(folder)),),
        packing=packing,
    )
    batches = make_batches(data, corpus, 0)
    for _ in range(_BATCHES_BEFORE):
        next(batches)
    tokens, places, began, cpu = 0, 0, time.monotonic(), time.process_time()
    while (took := time.monotonic() - began) < seconds:
        batch = next(batches)
        tokens += int(np.count_nonzero(batch.segment_ids_BT))
        places += batch.segment_ids_BT.size
    return {
        "packing": packing,
        "length": length,
        "batch": BATCHES[length],
        "tokens_per_second": round(tokens / took),
        "tokens_per_cpu_second": round(tokens / (time.process_time() - cpu)),
        "padding": round(1 - tokens / places, 5),
    }


def measure_plan(documents: int, packing: str, length: int) -> dict:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(500), 1.1, documents), 8, 200_000).astype(np.uint32)
    began, cpu = time.monotonic(), time.process_time()
    plan = make_plan(lengths, length, packing)
    return {
        "documents": documents,
        "packing": packing,
        "length": length,
        "seconds": round(time.monotonic() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "padding": round(1 - lengths.sum(dtype=np.int64) / (plan.rows * length), 5),
    }


def table(record: dict) -> str:
    """Formats the measurements for people."""
    prepared = record["prepare"]
    lines = [
        f"prepare: {prepared['tokens_per_second'] / 1e6:.2f} M tokens/s with "
        f"{prepared['workers']} workers, {prepared['tokens_per_cpu_second'] / 1e6:.2f} M a CPU "
        f"second"
    ]
    lines += [
        f"{row['packing']:8} rows of {row['length']:5}: {row['tokens_per_second'] / 1e6:5.1f} M "
        f"tokens/s, padding {row['padding']:.2%}"
        for row in record["rows"]
    ]
    lines += [
        f"{plan['packing']:8} plan of {plan['documents']:8} documents in rows of "
        f"{plan['length']:5}: {plan['cpu_seconds']:5.1f} CPU s, padding {plan['padding']:.3%}"
        for plan in record["plans"]
    ]
    return "\n".join([*lines, f"load before: {record['load_before']}", record["made"]])


if __name__ == "__main__":
    main()
