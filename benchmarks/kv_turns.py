"""Measures many turns of agent sessions whose caches share a byte budget: `make turns-benchmark`.

Command: `python -m benchmarks.kv_turns`. The turns of a session continue one context. Its cache
stays in memory until other sessions need the bytes: those used least recently are dropped, and read
again at their next turn. Two parts measure what fewer bits are worth then. "v6e" and "h200" serve
Qwen3-1.7B in simulated time, every pass at the peaks of a chip that need not be there. "replayed"
runs the small teacher on the machine at hand, and says which replies are right too.
"""

import argparse
import dataclasses
import math
import platform
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from benchmarks.turns.costs import Costs
from benchmarks.turns.reader import Reader
from benchmarks.turns.replayed import Replay
from benchmarks.turns.script import ScriptSettings, write_script
from benchmarks.turns.served import summary
from benchmarks.turns.simulated import Server
from benchmarks.turns.tables import replayed_table, simulated_table
from benchmarks.turns.workload import Workload
from configs.tiny_transfer import TEACHER
from hydrahead_jax.config import FullAttention, Hydra, ModelConfig, qwen3
from hydrahead_jax.evals.niah import needle_symbols
from hydrahead_jax.interop import load_hf
from hydrahead_jax.json_file import dumps, read_json
from pallas_kernels.hardware.chips import CHIPS
from pallas_kernels.report.__main__ import replace_block
from pallas_kernels.report.provenance import provenance
from train.data.text import TextSource, load_corpus

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "benchmarks" / "results" / "kv_turns.json"
PAGE = ROOT / "docs" / "kv_cache.md"
FORMATS = {16: "bf16", 8: "fp8", 4: "ultraquant"}
SESSIONS = {"v6e": 96, "h200": 384}
RESIDENT = 6
"""Sessions of the greatest length that the small teacher's budget holds at 16 bits."""


def layouts(teacher: ModelConfig) -> dict[str, ModelConfig]:
    """Returns hybrids of a teacher that has 16 query heads over 8 KV heads.

    At 7:1 two heads of each layer stay softmax: they share a KV head in every other layer. So 42 of
    Qwen3-1.7B's 224 KV heads remain, where KV-aware plans have 43 on average (docs/selection.md).
    """
    every_fourth = [
        FullAttention() if layer % 4 == 3 else Hydra(fa_heads=()) for layer in range(teacher.layers)
    ]
    heads = [Hydra(fa_heads=((0, 1), (0, 8))[layer % 2]) for layer in range(teacher.layers)]
    change = lambda mixers: dataclasses.replace(teacher, mixers=tuple(mixers))
    return {
        "full attention": teacher,
        "layer-wise 3:1": change(every_fourth),
        "head-wise 7:1": change(heads),
    }


def simulated(chip: str, workload: Workload) -> list[dict[str, Any]]:
    """Serves the workload with every layout and format."""
    rows, sessions = [], workload.turns()
    longest = max(sum(turn.tokens + turn.reply for turn in turns) for turns in sessions)
    for layout, config in layouts(qwen3("1.7b")).items():
        for bits, kv_format in FORMATS.items():
            costs = Costs.of(config, kv_format, CHIPS[chip])
            budget = CHIPS[chip].memory - costs.weights - costs.size.bytes(workload.prefix)
            row = {
                "chip": chip,
                "layout": layout,
                "bits": bits,
                "bytes_a_token": costs.size.token,
                "state_bytes": costs.size.state,
                "budget": budget,
                "fit": int(budget // costs.size.bytes(longest)),
            }
            server = Server(costs, budget, workload.prefix, sessions)
            server.run()
            rows.append(row | summary(server.turns, server.now))
    return rows


def replayed(settings: ScriptSettings) -> list[dict[str, Any]]:
    """Runs the small teacher with every format under one budget, and at 16 bits without a limit."""
    folder = ROOT / TEACHER
    config, params = load_hf(folder, dtype=jnp.bfloat16)
    corpus = load_corpus(folder / "tokenizer.json", config)
    text = corpus.haystack(TextSource(), "held_out").tokens
    script = write_script(settings, needle_symbols(corpus.tokenizer), text)
    one = script._replace(sessions=script.sessions[:1])
    rows, budget = [], None
    for bits, is_limited in [*((bits, True) for bits in FORMATS), (16, False)]:
        more = {"capacity": settings.longest, "dtype": jnp.bfloat16}
        reader = Reader(config, params, FORMATS[bits], **more)
        longest = reader.size.bytes(settings.longest - settings.prefix - 1)
        budget = budget or RESIDENT * longest
        Replay(reader, one, chunk=settings.chunk, budget=math.inf).run()  # compiles
        limit = budget if is_limited else math.inf
        replay = Replay(reader, script, chunk=settings.chunk, budget=limit)
        replay.run()
        row = {
            "bits": bits,
            "budget": budget if is_limited else None,
            "fit": budget // longest if is_limited else None,
            "bytes_a_token": reader.size.token,
            "right_first": replay.right(again=False),
            "right_again": replay.right(again=True),
        }
        rows.append(row | summary(replay.turns, replay.seconds))
    return rows


def read() -> dict[str, Any]:
    return read_json(FIGURES) if FIGURES.exists() else {}


def write(part: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Replaces a part of the figures."""
    found = {
        "made": provenance(),
        "machine": platform.processor() or platform.machine(),
        "settings": settings,
        "rows": rows,
    }
    FIGURES.write_text(dumps(read() | {part: found}, indent=1) + "\n")


def write_page(figures: dict[str, Any]) -> str:
    """Puts the tables into the page, and returns them."""
    parts = []
    for chip in SESSIONS:
        if found := figures.get(chip):
            title = f"### Qwen3-1.7B on one {chip}, {SESSIONS[chip]} sessions, simulated"
            parts += [title, f"- {found['made']}", simulated_table(found["rows"])]
    if found := figures.get("replayed"):
        parts += ["### The small teacher, replayed, in processor time", f"- {found['made']}"]
        parts += [replayed_table(found["rows"])]
    tables = "\n\n".join(parts)
    replace_block(PAGE, tables, "turns")
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_turns", description=__doc__)
    parts = (*SESSIONS, "replayed")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all if none is given")
    options = parser.parse_args()
    for part in options.parts or parts:
        if part == "replayed":
            settings, rows = ScriptSettings(), replayed(ScriptSettings())
        elif part in SESSIONS:
            settings = Workload(sessions=SESSIONS[part])
            rows = simulated(part, settings)
        else:
            parser.error(f"there is no part {part!r}; choose from {', '.join(parts)}")
        write(part, vars(settings), rows)
    print(write_page(read()))


if __name__ == "__main__":
    main()
