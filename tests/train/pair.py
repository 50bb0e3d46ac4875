"""Trains one stage of a small run on a mesh.

Command: `python -m tests.train.pair FOLDER STEPS AXIS=SIZE...`, in as many processes as the
environment says.
"""

import dataclasses
import sys
from pathlib import Path

import jax

from hydrahead_jax.models import init_params
from hydrahead_jax.sharding import MeshConfig
from tests.train import small
from train import distributed
from train.__main__ import ended_by
from train.data.text import TextSource
from train.files.run_folder import open_run, save_model
from train.run import loop
from train.run.settings import RunSettings

CHECKPOINT_EVERY = 4


def job(folder: Path, steps: int, mesh: MeshConfig) -> loop.Job:
    text = TextSource(folder=str(folder / "text"))
    stage = small.stages(text, steps=steps, checkpoint_every=CHECKPOINT_EVERY)[-1]
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, batch=8))
    made = small.job(folder / "run", text, (stage,), say=distributed.say)
    where = made.layout(dataclasses.replace(stage, mesh=mesh))
    return dataclasses.replace(
        made,
        initial=lambda: loop.reshard(init_params(small.TEACHER, jax.random.key(2)), where),
        model=small.TEACHER,
        mesh=mesh,
        running=RunSettings(peer_timeout=4, step_timeout=60, keep_checkpoints=2),
        teacher=None,
    )


def main(folder: str, steps: str, *axes: str) -> int:
    try:
        distributed.start()
        mesh = MeshConfig(**{axis: int(size) for axis, size in (a.split("=") for a in axes)})
        made = job(Path(folder), int(steps), mesh)
        open_run(made.folder, {"steps": steps})
        save_model(made.folder, made.model)
        loop.run(made)
        distributed.finish()
    except Exception as error:
        return ended_by(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
