"""Runs the first step of stages on meshes: `python -m tests.train.run.first_step OUT`.

There are as many processes as the environment says; what they compute is compared with one
device, in float64, where rounding hides nothing. The first process writes losses and gradients
to OUT.
"""

import dataclasses
import sys

import jax
import jmp
import numpy as np
from jax.experimental import multihost_utils

from hydrahead_jax.config import Hydra, ModelConfig, NativeHybrid
from hydrahead_jax.models import init_params
from hydrahead_jax.sharding import Layout, MeshConfig, make_layout
from tests.train import small
from train import distributed
from train.data.batches import Batch, DataConfig
from train.run.train_step import init_state, make_train_step
from train.stage.optimizer import AdamW
from train.stage.stage import MIXERS, Stage

B, T = 8, 32
POLICY = jmp.get_policy("float64")
STUDENT = dataclasses.replace(small.TEACHER, mixers=(Hydra(fa_heads=(1, 2)),) * 2)
NATIVE_HYBRID = dataclasses.replace(
    small.TEACHER,
    mixers=(
        NativeHybrid(window=5, slots=3, value_silu=True, output_norm=True, qk_norm=False),
        NativeHybrid(window=None, slots=3),
    ),
)
FSDP = MeshConfig(fsdp=8)
CONTEXT = MeshConfig(data=2, context=4)
MIXED = MeshConfig(fsdp=2, context=2, tensor=2)
HEADS = MeshConfig(fsdp=2, tensor=4)  # more ranks than KV heads
CASES = {  # name -> student, loss, mesh, what else the stage says
    "align on fsdp": (STUDENT, "align", FSDP, {"trainable": MIXERS, "remat": "kernels"}),
    "distill on context": (STUDENT, "distill", CONTEXT, {"microbatches": 2, "remat": "full"}),
    "distill on mixed": (STUDENT, "distill", MIXED, {"scan_layers": True, "ce_weight": 0.5}),
    "native hybrid on heads": (NATIVE_HYBRID, "next_token", HEADS, {"remat": "kernels"}),
    "native hybrid on mixed": (NATIVE_HYBRID, "distill", MIXED, {"remat": "full"}),
}


OF_HEADS = ("rms_ratio", "sigma")  # statistics, which are float32


def stage_of(loss: str, mesh: MeshConfig | None, more: dict) -> Stage:
    return Stage(
        name=loss,
        loss=loss,
        steps=2,
        data=DataConfig(length=T, batch=B),
        optim=AdamW(learning_rate=1e-3, clip=1e9),
        mesh=mesh,
        **more,
    )


def batch() -> Batch:
    """Returns packed documents, across ranks and from a rank's first token on, and padding."""
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    segments[0] = np.repeat([1, 2, 3, 0], T // 4)
    segments[1, T - 3 :] = 0
    tokens = rng.integers(0, small.VOCAB, (B, T)).astype(np.int32)
    return Batch(tokens, segments, (segments != 0).astype(np.float32))


def first_step(stage: Stage, config: ModelConfig, layout: Layout | None) -> dict[str, np.ndarray]:
    """Returns loss, norm, statistics of heads, and gradients.

    The gradients are the first moment after a step, times ten.
    """
    place = lambda tree: tree if layout is None else jax.device_put(tree, layout.shardings(tree))
    state, frozen = place(init_state(stage, init_params(config, jax.random.key(2))))
    teacher = place(init_params(small.TEACHER, jax.random.key(1)))
    rows = batch()
    if layout is not None:
        own = list(layout.local_rows(B))
        rows = layout.place_batch(jax.tree.map(lambda x: x[own], rows), B)
    step = make_train_step(stage, config, small.TEACHER, POLICY, layout)
    state, metrics = step(state, frozen, teacher, rows)
    found = {f"gradient {path}": 10 * x for path, x in state.opt_state[1][0].mu.items()}
    of_heads = [name for name in metrics if name.startswith(OF_HEADS)]
    for name in ("loss", "gradient_norm", *of_heads):
        found[name] = metrics[name][0] / metrics[name][1]
    if layout is None:
        return jax.device_get(found)
    return multihost_utils.process_allgather(found, tiled=True)


def main(out: str) -> None:
    jax.config.update("jax_enable_x64", True)
    distributed.start()
    found = {}
    for name, (config, loss, mesh, more) in CASES.items():
        step = first_step(stage_of(loss, mesh, more), config, make_layout(mesh))
        found |= {f"{name}, found: {key}": value for key, value in step.items()}
        if distributed.is_first():
            same = {k: v for k, v in more.items() if k in ("trainable", "ce_weight")}
            step = first_step(stage_of(loss, None, same), config, None)
            found |= {f"{name}, expected: {key}": value for key, value in step.items()}
    if distributed.is_first():
        np.savez(out, **found)
    distributed.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
