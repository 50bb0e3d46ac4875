"""Measures memory of the distillation loss with the TPU's compiler; needs no TPU.

Command: `python -m benchmarks.loss_memory`. It compiles the loss over the vocabulary alone, forward
and backward, for the tokens of one device. Hidden states and unembeddings are bfloat16; teacher and
student have the same width.
"""

import argparse
import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import qwen3
from hydrahead_jax.json_file import dumps
from hydrahead_jax.vocabulary import Unembedding, pair_scores
from hydrahead_jax.vocabulary.tiles import TOKENS_AT_ONCE
from pallas_kernels.hardware.isolated import run_isolated
from pallas_kernels.hardware.memory import memory_of
from pallas_kernels.hardware.topology import TPU_ENVIRONMENT, tpu_devices
from pallas_kernels.report.provenance import provenance
from pallas_kernels.report.tables import markdown
from train.losses.objectives import VOCABULARY_AT_ONCE

TOKENS = 65536
WIDTHS = (2048, 4096)
TOPOLOGY = "v5p:2x2x1"
RESULT = Path(__file__).parent / "results" / "loss_memory.json"
_GIB = 2**30


def ours(teacher_XD, teacher_VD, student_XD, student_VD, targets_X):
    """Computes loss, metrics and the student's gradients, as a distill stage takes them."""

    def loss(student_XD, student_VD):
        scores = pair_scores(
            teacher_XD,
            Unembedding(teacher_VD, 0),
            student_XD,
            Unembedding(student_VD, 0),
            targets_X,
            at_once=VOCABULARY_AT_ONCE,
        )
        return jnp.mean(scores.kl_X), (jnp.mean(scores.nll_X), jnp.mean(scores.teacher_nll_X))

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(student_XD, student_VD)


def naive(teacher_XD, teacher_VD, student_XD, student_VD, targets_X):
    """Computes the same KL from all logits at once."""

    def loss(student_XD, student_VD):
        log_softmax = lambda x_XD, w_VD: jax.nn.log_softmax(
            jnp.einsum("XD,VD->XV", x_XD, w_VD, preferred_element_type=jnp.float32)
        )
        teacher_XV = log_softmax(teacher_XD, teacher_VD)
        gap_XV = teacher_XV - log_softmax(student_XD, student_VD)
        return jnp.mean(jnp.sum(jnp.exp(teacher_XV) * gap_XV, axis=-1))

    return jax.value_and_grad(loss, (0, 1))(student_XD, student_VD)


def measure(function: Callable, width: int, platform: str = "tpu") -> dict:
    """Compiles in a new process.

    Returns:
      Bytes of temporaries and of results, and the CPU seconds of the compiler; or its refusal.
    """
    return run_isolated(_measure, function, width, platform, environment=TPU_ENVIRONMENT)


def _measure(function: Callable, width: int, platform: str) -> dict:
    jax.config.update("jax_enable_compilation_cache", False)
    device = (tpu_devices(TOPOLOGY) if platform == "tpu" else jax.devices())[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("chip",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=where)
    model = (shape(jnp.bfloat16, TOKENS, width), shape(jnp.bfloat16, qwen3("1.7b").vocab, width))
    began = time.process_time()
    try:
        compiled = jax.jit(function).lower(*model, *model, shape(jnp.int32, TOKENS)).compile()
    except jax.errors.JaxRuntimeError as error:
        return {"refused": str(error).splitlines()[0]}
    seconds = round(time.process_time() - began, 1)
    return dataclasses.asdict(memory_of(compiled)) | {"compile_cpu_seconds": seconds}


def table(record: dict) -> str:
    """Makes a Markdown table."""
    lines = []
    for row in record["rows"]:
        if "refused" in row:
            needed = re.search(r"temporaries \(([\d.]+)G\)", row["refused"])
            figures = [f"{needed[1]} GiB, refused" if needed else row["refused"], "", ""]
        else:
            sizes = (row["temporaries"], row["results"])
            figures = [
                *(f"{x / _GIB:.2f} GiB" for x in sizes),
                f"{row['compile_cpu_seconds']} CPU s",
            ]
        lines.append([row["loss"], str(row["width"]), *figures])
    return markdown(("loss", "D", "temporaries", "results", "compiled in"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.loss_memory", description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULT, help="file of the figures")
    options = parser.parse_args()
    rows = [
        {"loss": function.__name__, "width": width} | measure(function, width)
        for width in WIDTHS
        for function in (ours, naive)
    ]
    record = {
        "tokens": TOKENS,
        "vocabulary": qwen3("1.7b").vocab,
        "vocabulary_at_once": VOCABULARY_AT_ONCE,
        "tokens_at_once": TOKENS_AT_ONCE,
        "compiled_for": TOPOLOGY,
        "provenance": provenance(),
        "rows": rows,
    }
    options.json.write_text(dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    from benchmarks import loss_memory  # lets the new process import its functions by name

    loss_memory.main()
