"""Checks that a mesh whose chunks are too short is refused before anything is compiled."""

import dataclasses

import pytest

from hydrahead_jax.config import Hydra, HydraChoices, NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.sharding import MeshConfig
from tests.train import small
from train.data.batches import DataConfig
from train.stage.mesh_checks import check_mesh
from train.stage.optimizer import AdamW
from train.stage.stage import Stage

MESH = MeshConfig(context=4)


def stage(length: int) -> Stage:
    optim = AdamW(learning_rate=1e-3)
    data = DataConfig(length=length, batch=1)
    return Stage(name="train", loss="next_token", steps=1, data=data, optim=optim)


def windows(*sizes: int | None):
    mixers = tuple(NativeHybrid(window=size, slots=3) for size in sizes)
    return dataclasses.replace(small.TEACHER, mixers=mixers)


CHOICES = HydraChoices(native_hybrid=NativeHybrid(window=6, slots=3))
HEADS = dataclasses.replace(small.TEACHER, mixers=(Hydra(fa_heads=(1,), choices=CHOICES),))


@pytest.mark.parametrize(
    ("model", "length", "needs"),
    [
        (small.STUDENT, 16, "chunks of 2 tokens, and the convolution needs 3"),
        (windows(5, None), 32, "chunks of 4 tokens, and a window needs 5"),
        (HEADS, 32, "chunks of 4 tokens, and a window needs 6"),
    ],
)
def test_short_chunks_are_refused(model, length, needs):
    with pytest.raises(UserError, match=needs):
        check_mesh(stage(length), MESH, 4, model, None)
    assert check_mesh(stage(2 * length), MESH, 4, model, None)["context"] == 4


def test_what_looks_at_no_earlier_chunk_fits_any():
    for model in (small.TEACHER, windows(0, None)):
        assert check_mesh(stage(8), MESH, 4, model, None)["context"] == 4
