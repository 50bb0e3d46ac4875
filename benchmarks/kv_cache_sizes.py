"""Computes what the cache of one sequence takes, by kind of hybrid and by format.

Command: `python -m benchmarks.kv_cache_sizes`, which prints the table; `--write` puts it into
docs/kv_cache.md. Nothing is allocated: the sizes are those of the arrays that `init_cache` makes.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import QWEN3_SIZES, ModelConfig, qwen3
from hydrahead_jax.head_plan import HeadPlan
from pallas_kernels.report.__main__ import replace_block
from pallas_kernels.report.tables import markdown

PAGE = Path(__file__).parents[1] / "docs" / "kv_cache.md"
MARK = "kv cache sizes"
FORMATS = {"16 bits": "bf16", "8 bits": "fp8", "4 bits": "ultraquant"}
GIB = 2**30


def every_fourth_layer(model: ModelConfig) -> HeadPlan:
    """Returns the layer-wise plan at 3:1: a layer is softmax attention or the delta rule."""
    heads = tuple(range(model.query_heads))
    return _plan(model, [heads if layer % 4 == 3 else () for layer in range(model.layers)])


def in_every_layer(model: ModelConfig, share: int, *, together: bool) -> HeadPlan:
    """Returns a head-wise plan with one softmax head of `share` in every layer.

    They read as few KV heads as can be if `together`, else as many.
    """
    count, group = model.query_heads // share, model.query_heads // model.kv_heads
    apart = sorted(range(model.query_heads), key=lambda head: (head % group, head))
    heads = range(count) if together else sorted(apart[:count])
    return _plan(model, [tuple(heads)] * model.layers)


def _plan(model: ModelConfig, heads: list[tuple[int, ...]]) -> HeadPlan:
    return HeadPlan(
        fa_heads=tuple(heads),
        query_heads=model.query_heads,
        kv_heads=model.kv_heads,
        strategy="example",
    )


def table(size: str, length: int) -> str:
    """Returns the table of a Qwen3 and its hybrids, Markdown."""
    teacher = qwen3(size)
    plans = {
        "layer-wise 3:1": every_fourth_layer(teacher),
        "head-wise 3:1, KV heads shared": in_every_layer(teacher, 4, together=True),
        "head-wise 3:1, a KV head each": in_every_layer(teacher, 4, together=False),
        "head-wise 7:1, KV heads shared": in_every_layer(teacher, 8, together=True),
        "head-wise 7:1, a KV head each": in_every_layer(teacher, 8, together=False),
    }
    models = {"full": teacher} | {name: plan.student(teacher) for name, plan in plans.items()}
    kv_heads = {name: plan.surviving_kv_heads for name, plan in plans.items()}
    full, rows = cache_bytes(teacher, length), []
    for name, model in models.items():
        sizes = [cache_bytes(model, length, jnp.bfloat16, one) for one in FORMATS.values()]
        cells = [f"{size / GIB:.2f} ({full / size:.1f})" for size in sizes]
        heads = kv_heads.get(name, model.layers * model.kv_heads)
        rows.append([name, str(heads), f"{_constant(model) / 2**20:.1f}", *cells])
    return markdown(["softmax heads", "KV heads", "states MiB", *FORMATS], rows)


def _constant(model: ModelConfig) -> int:
    """Returns the bytes that do not grow with the length."""
    return 2 * cache_bytes(model, 1) - cache_bytes(model, 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_cache_sizes")
    parser.add_argument("--size", choices=QWEN3_SIZES, default="1.7b")
    parser.add_argument("--length", type=int, default=2**19, help="tokens of the sequence")
    parser.add_argument("--write", action="store_true", help="put the table into docs/kv_cache.md")
    options = parser.parse_args()
    text = table(options.size, options.length)
    print(text)
    if options.write:
        replace_block(PAGE, text, MARK)


if __name__ == "__main__":
    main()
