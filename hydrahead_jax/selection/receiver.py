"""Receiver scores: the direct effect of each head on the answer, by activation patching."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hydrahead_jax.config import FullAttention, ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.models import merge
from hydrahead_jax.selection.batches import padded_batches
from hydrahead_jax.selection.probes import ProbePairs
from hydrahead_jax.selection.readout import readout_of_hidden, readout_positions

MIN_DENOMINATOR = 0.5
MIN_PAIRS = 6


class PatchedReadouts(NamedTuple):
    """m(x), m(x'), and m(x) with one head of one layer taken from x'."""

    clean_B: np.ndarray | jax.Array
    corrupted_B: np.ndarray | jax.Array
    patched_BLN: np.ndarray | jax.Array


class Effects(NamedTuple):
    """Direct effects on the usable pairs of one sub-probe.

    Attributes:
      raw_BLN: before the clamp to [0, 1].
      clean: mean readout of the usable pairs, nan if there is none.
      corrupted: mean readout of their counterfactuals.
      skipped: pairs whose readouts differ by less than 0.5.
    """

    raw_BLN: np.ndarray
    clean: float
    corrupted: float
    skipped: int


@functools.partial(jax.jit, static_argnames="config")
def patched_readouts(
    config: ModelConfig,
    params: dict,
    tokens_BT: Int[Array, "B T"],
    corrupt_BT: Int[Array, "B T"],
    answer_BJ: Int[Array, "B J"],
    distractor_BJ: Int[Array, "B J"],
) -> PatchedReadouts:
    """Patches every head of every layer in turn, all mixers downstream frozen.

    With frozen mixers nothing crosses positions, so the J readout positions are enough: one clean
    and one corrupted forward, then one walk through the layers that starts N patched streams at
    each and takes all of them through norm and MLP. Equal to `definition.patched_readouts` up to
    rounding, in the dtype of the parameters. Beside the two forwards it holds about
    L N B J (D + 2 F) numbers, which the caller bounds by B.

    Raises:
      ValueError: a layer is not full attention.
    """
    if any(mixer != FullAttention() for mixer in config.mixers):
        raise ValueError("heads are scored in the teacher, whose layers are all full attention")
    model = merge(config, params)
    B, J = answer_BJ.shape
    at = readout_positions(tokens_BT.shape[1], J)
    clean, corrupted = model(tokens_BT), model(corrupt_BT)
    x_SBJD = clean.taps[0].residual_BTD[None, :, at]
    for block, tap, other in zip(model.layers, clean.taps, corrupted.taps, strict=True):
        x_SBJD += tap.mixer_out_BTD[:, at]
        change_BJNH = (other.heads_BTNH - tap.heads_BTNH)[:, at]
        change_NBJD = jnp.einsum("BJNH,NHD->NBJD", change_BJNH, block.mixer.w_o_NHD[...])
        x_SBJD = jnp.concatenate([x_SBJD, x_SBJD[:1] + change_NBJD])
        flat = (len(x_SBJD) * B, J, config.embed)
        x_SBJD = block.add_mlp(x_SBJD.reshape(flat)).reshape(x_SBJD.shape)
    spans = (answer_BJ, distractor_BJ)
    readout_SB = readout_of_hidden(model, model.final_norm(x_SBJD), *spans)
    corrupted_B = readout_of_hidden(model, corrupted.hidden_BTD[:, at], *spans)
    patched_BLN = readout_SB[1:].T.reshape(B, config.layers, config.query_heads)
    return PatchedReadouts(readout_SB[0], corrupted_B, patched_BLN)


def direct_effects(
    clean_B: Float[np.ndarray, " B"],
    corrupted_B: Float[np.ndarray, " B"],
    patched_BLN: Float[np.ndarray, "B L N"],
) -> Effects:
    """(m(x) - m(x; patch)) / (m(x) - m(x')) for the pairs with a denominator of at least 0.5
    (Eq 10, arXiv 2606.20097)."""
    denominator_B = clean_B - corrupted_B
    usable_B = denominator_B >= MIN_DENOMINATOR
    clean_B, corrupted_B = clean_B[usable_B], corrupted_B[usable_B]
    drop_BLN = clean_B[:, None, None] - patched_BLN[usable_B]
    raw_BLN = drop_BLN / denominator_B[usable_B][:, None, None]
    count = int(usable_B.sum())
    clean, corrupted = (
        float(m_B.sum() / count) if count else np.nan for m_B in (clean_B, corrupted_B)
    )
    return Effects(raw_BLN, clean, corrupted, len(usable_B) - count)


def receiver_effects(
    config: ModelConfig,
    params: dict,
    pairs: ProbePairs,
    *,
    name: str,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Effects:
    """Direct effects of all heads on one sub-probe.

    Args:
      config: of the teacher.
      params: of the teacher; float32 ones give scores to 1e-5.
      pairs: of the sub-probe.
      name: of the sub-probe, for the error.
      batch: pairs at a time; memory grows with it.
      progress: called with the number of pairs just done.

    Raises:
      UserError: fewer than 6 pairs are usable.
    """
    parts = []
    for arrays, real in padded_batches(pairs, batch):
        result = patched_readouts(config, params, *(jnp.asarray(a) for a in arrays))
        parts.append([np.asarray(x, np.float64)[:real] for x in result])
        if progress is not None:
            progress(real)
    effects = direct_effects(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    usable = len(effects.raw_BLN)
    if usable < MIN_PAIRS:
        raise UserError(
            f"probe {name}: the answer and its replacement move the model's readout by 0.5 or more "
            f"in {usable} of {usable + effects.skipped} pairs, and {MIN_PAIRS} are needed; use "
            "more pairs, shorter documents, fewer needles, or a model that retrieves needles"
        )
    return effects
