"""Prepares what the model and the losses read of a batch, in the order of tokens on devices."""

import dataclasses

import jax
import jax.numpy as jnp

from hydrahead_jax.context.order import to_order
from hydrahead_jax.ops.masks import segment_positions
from hydrahead_jax.sharding import Layout
from hydrahead_jax.vocabulary import Kept
from pallas_kernels.gated_delta.segments import state_runs
from train.data.batches import Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelBatch:
    """Holds what the model and the losses read of a batch.

    Attributes:
      tokens_BT: int32.
      segment_ids_BT: document of each token within its row; 0 is padding.
      positions_BT: position of each token in its document.
      starts_BT: True at the first tokens of all documents but a row's first.
      target_BT: the token that follows.
      target_weight_BT: weight of predicting it; 0 on padding and on a document's last token.
      teacher: the teacher's most probable tokens, where they are read from a cache.
    """

    tokens_BT: jax.Array
    segment_ids_BT: jax.Array
    positions_BT: jax.Array
    starts_BT: jax.Array
    target_BT: jax.Array
    target_weight_BT: jax.Array
    teacher: Kept | None = None


def next_token_targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the token after each token, and its weight.

    The weight is 0 on padding and on the last token of a document.
    """
    shift = lambda x_BT: jnp.pad(x_BT[:, 1:], ((0, 0), (0, 1)))
    segments_BT, next_segments_BT = batch.segment_ids_BT, shift(batch.segment_ids_BT)
    same_BT = (segments_BT == next_segments_BT) & (segments_BT != 0)
    return shift(batch.tokens_BT), jnp.where(same_BT, shift(batch.loss_weight_BT), 0.0)


def make_model_batch(batch: Batch, layout: Layout | None) -> ModelBatch:
    """Computes what needs the natural order of the tokens, then applies the layout's order."""
    if layout is not None:
        batch = jax.tree.map(lambda x: layout.constrain(x, "B"), batch)
    target_BT, target_weight_BT = next_token_targets(batch)
    segment_ids_BT = batch.segment_ids_BT
    made = ModelBatch(
        tokens_BT=batch.tokens_BT,
        segment_ids_BT=segment_ids_BT,
        positions_BT=segment_positions(segment_ids_BT),
        starts_BT=jnp.diff(state_runs(segment_ids_BT), axis=1, prepend=0) > 0,
        target_BT=target_BT,
        target_weight_BT=target_weight_BT,
        teacher=batch.teacher,
    )
    if layout is None:
        return made
    ordered = lambda x: to_order(x, layout.size("context"), layout.order)
    return jax.tree.map(lambda x: layout.constrain(ordered(x), "BT"), made)
