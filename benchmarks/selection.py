"""Measures what head scores cost, beside a forward pass and the definition.

Command: `python -m benchmarks.selection`. A random model of a Qwen3's shape and one pair suffice:
time does not depend on the weights. A forward pass is the complete model over all tokens with only
the logits of the answer; the definition takes one such pass for each head. `--pairs 40` times a
complete selection of 40 pairs instead, with one exact round of senders and total effects: minutes
on an accelerator, many hours on a CPU.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig, qwen3
from hydrahead_jax.json_file import dumps
from hydrahead_jax.models import abstract_params, merge
from hydrahead_jax.selection.circuit import by_layer
from hydrahead_jax.selection.effects import direct, reference
from hydrahead_jax.selection.effects.measure import Measure
from hydrahead_jax.selection.effects.memory import at_once
from hydrahead_jax.selection.effects.readout import readout_positions
from hydrahead_jax.selection.effects.store import Store
from hydrahead_jax.selection.effects.trace import trace_pairs
from hydrahead_jax.selection.probes.pairs import ProbePairs
from hydrahead_jax.selection.scores.pair_effects import effects
from hydrahead_jax.selection.screening import sample
from pallas_kernels.report.provenance import provenance

RESULTS = Path(__file__).parent / "results"
ANSWER = 7
"""Tokens of a 7-digit number, one a digit."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    config = qwen3(options.model)
    if options.layers:
        config = dataclasses.replace(config, mixers=config.mixers[: options.layers])
    params = random_params(config, options.dtype)
    if options.pairs:
        rows = [selection(config, params, options)]
    else:
        rows = [measure(config, params, options.length, depth, options) for depth in options.depths]
    record = {
        "benchmark": "selection",
        "model": f"random Qwen3-{options.model}",
        "dtype": options.dtype,
        "length": options.length,
        "device": jax.devices()[0].device_kind,
        "provenance": provenance(),
        "rows": rows,
    }
    print(dumps(record, indent=2) if options.pairs else table(record))
    if options.json:
        path = RESULTS / options.json
        path.write_text(dumps(record, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="0.6b", help="a Qwen3 size")
    options.add_argument("--length", type=int, default=2048, help="tokens of a document")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options.add_argument(
        "--depths", type=float, nargs="+", default=(0.5, 0.0), help="where the needle stands"
    )
    options.add_argument("--heads", type=int, default=8, help="compared with the definition")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--layers", type=int, help="of the model, from the first; all if absent")
    options.add_argument("--pairs", type=int, help="time a whole selection of so many")
    options.add_argument("--memory-gib", type=float, default=8.0, help="for activations")
    options.add_argument("--json", help="file name under benchmarks/results")
    return options


def measure(config: ModelConfig, params: dict, length: int, depth: float, options) -> dict:
    """Returns median seconds of each way, and how far they agree on a sample of heads."""
    pairs = random_pair(config, length, depth)
    timed = functools.partial(median_seconds, repeats=options.repeats)
    forward_s, _ = timed(lambda: forward(config, params, pairs.tokens_BT))
    receivers_s, (_, patched_BLN) = timed(lambda: receivers(config, params, pairs))
    every = list(np.ndindex(config.layers, config.query_heads))
    heads = sample(every, options.heads, seed=0)
    clean = reference.clean_readouts(config, params, pairs)
    slow = lambda some: reference.receiver_readouts(config, params, pairs, some)
    one_s, _ = median_seconds(lambda: slow(heads[:1]), repeats=1)
    start = time.perf_counter()
    exact_BX = slow(heads)
    all_s = time.perf_counter() - start
    clean_B, corrupted_B = (np.asarray(x, np.float64) for x in clean)
    ours_BX = np.stack([np.asarray(patched_BLN)[:, l, n] for l, n in heads], axis=1)
    differences = effects(clean_B, corrupted_B, ours_BX) - effects(clean_B, corrupted_B, exact_BX)
    definition_s = (all_s - one_s) / (len(heads) - 1) * len(every)
    return {
        "depth": depth,
        "heads": len(every),
        "forward_s": forward_s,
        "receivers_s": receivers_s,
        "forwards": receivers_s / forward_s,
        "definition_s": definition_s,
        "speedup": definition_s / receivers_s,
        "speedup_over_forwards": forward_s * len(every) / receivers_s,
        "compared_heads": len(heads),
        "largest_difference_of_effects": float(np.abs(differences).max()),
        "largest_difference_of_readouts": float(np.abs(ours_BX - exact_BX).max()),
        "denominator": float(np.abs(clean_B - corrupted_B).min()),
    }


def selection(config: ModelConfig, params: dict, options) -> dict:
    """Times each stage over all pairs, compilation included; about 6 % of heads are receivers."""
    rng = np.random.default_rng(2)
    drawn = [random_pair(config, options.length, depth) for depth in rng.random(options.pairs)]
    pairs = ProbePairs(*(np.concatenate(column) for column in zip(*drawn, strict=True)))
    memory = options.memory_gib * 2**30
    chosen = at_once(config, options.length, ANSWER, memory)
    engine = Measure(config, params, None, chosen, Store(None, {}))
    every = list(np.ndindex(config.layers, config.query_heads))
    listening = sample(every, max(1, round(0.06 * len(every))), seed=0)
    receivers_LN = by_layer(set(listening), config)
    upstream = [head for head in every if head[0] < max(layer for layer, _ in listening)]
    stages = {
        "receivers": lambda tick: engine.receivers("", pairs, tick),
        "senders": lambda tick: engine.senders("", pairs, receivers_LN, upstream, tick),
        "totals": lambda tick: engine.totals("", pairs, every, tick),
        "slopes": lambda tick: engine.slopes("", pairs, receivers_LN, tick),
    }
    seconds = {}
    for name, run in stages.items():
        start = time.perf_counter()
        run(lambda new: None)
        seconds[name] = time.perf_counter() - start
    return {"pairs": options.pairs, "at_once": chosen._asdict(), "seconds": seconds}


def random_params(config: ModelConfig, dtype: str) -> dict:
    """Draws normal parameters with the variance of a fan-in start; norms are 1.

    They are made on the host, leaf by leaf.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if "norm" in path[-1].key:
            return jnp.ones(leaf.shape, dtype)
        fan = leaf.shape[0] if leaf.ndim < 3 or path[-1].key != "w_o_NHD" else leaf.shape[0] * 128
        scale = config.embed**-0.5 if path[-1].key == "w_embed_VD" else fan**-0.5
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * scale, dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def random_pair(config: ModelConfig, length: int, depth: float) -> ProbePairs:
    """Draws x and x' that differ in `ANSWER` tokens at a depth of the document."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.integers(config.vocab, size=shape).astype(np.int32)
    tokens_BT = draw(1, length)
    corrupt_BT, answer_BJ = tokens_BT.copy(), tokens_BT[:, -ANSWER:].copy()
    start = int(depth * (length - 2 * ANSWER))
    corrupt_BT[:, start : start + ANSWER] = draw(1, ANSWER)
    ones_BT = np.ones_like(tokens_BT)
    return ProbePairs(tokens_BT, corrupt_BT, ones_BT, answer_BJ, draw(1, ANSWER))


@functools.partial(jax.jit, static_argnames="config")
def forward(config: ModelConfig, params: dict, tokens_BT):
    """Returns the logits that predict the answer of x."""
    model = merge(config, params)
    at = readout_positions(tokens_BT.shape[1], ANSWER)
    return model.logits(model(tokens_BT).hidden_BTD[:, at])


def receivers(config: ModelConfig, params: dict, pairs: ProbePairs):
    trace = trace_pairs(config, params, pairs)
    patched_BLN = direct.patched_readouts(config, params, trace)
    return (trace.clean_B, trace.corrupted_B), patched_BLN


def median_seconds(run: Callable, repeats: int):
    """Returns the median of `repeats` calls after one that compiles, and the last result."""
    result = jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)), result


def table(record: dict) -> str:
    """Makes a Markdown table."""
    lines = [
        f"{record['model']}, {record['dtype']}, {record['length']} tokens, "
        f"{record['device']}, {record['provenance']}",
        "",
        "| needle at | one forward | all direct effects | in forwards | by the definition | "
        "faster by | largest difference of readouts |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['depth']:.0%} | {row['forward_s']:.2f} s | {row['receivers_s']:.2f} s | "
            f"{row['forwards']:.2f} | {row['definition_s']:.0f} s | {row['speedup']:.0f}x | "
            f"{row['largest_difference_of_readouts']:.1e} over {row['compared_heads']} heads |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
