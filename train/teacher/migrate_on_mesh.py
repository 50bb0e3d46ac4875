"""Makes the student's first parameters directly on a mesh."""

import functools

import jax
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.interop import head_rms, migrate
from hydrahead_jax.models import abstract_params
from hydrahead_jax.sharding import Layout
from train.data.batches import Batch
from train.losses.model_batch import make_model_batch


def migrate_on(
    layout: Layout,
    teacher_config: ModelConfig,
    teacher_params: dict,
    student: ModelConfig,
    key: jax.Array,
    rows_BT: np.ndarray,
) -> dict:
    """Runs `migrate` on a mesh, with gains from the calibration rows; no device holds a full array.

    Rows, and their ends, are padded to sizes that the mesh divides.
    """
    ranks = layout.size("data", "fsdp")
    chunks = 2 * layout.size("context")
    fill = [(0, -rows_BT.shape[0] % ranks), (0, -rows_BT.shape[1] % chunks)]
    tokens_BT = np.pad(rows_BT, fill)
    segment_ids_BT = np.pad(np.ones(rows_BT.shape, np.int32), fill)
    batch = Batch(tokens_BT, segment_ids_BT, segment_ids_BT.astype(np.float32))
    own = list(layout.local_rows(len(tokens_BT)))
    batch = layout.place_batch(jax.tree.map(lambda x: x[own], batch), len(tokens_BT))
    batch = jax.jit(lambda batch: make_model_batch(batch, layout))(batch)
    head_rms_LN = head_rms(
        teacher_config,
        teacher_params,
        batch.tokens_BT,
        batch.segment_ids_BT,
        batch.positions_BT,
        batch.starts_BT,
        layout,
    )
    make = functools.partial(migrate, teacher_config, student_config=student)
    shardings = layout.shardings(abstract_params(student))
    return jax.jit(
        lambda params, key, rms: make(params, key=key, head_rms_LN=rms), out_shardings=shardings
    )(teacher_params, key, head_rms_LN)
