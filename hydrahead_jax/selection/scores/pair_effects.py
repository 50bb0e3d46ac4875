"""Computes effects from patched readouts: how much of the answer a head carries."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from hydrahead_jax.errors import UserError

MIN_DENOMINATOR = 0.5
MIN_PAIRS = 6


class PairEffects(NamedTuple):
    """Reports the effects of all heads on the usable pairs of one sub-probe, not clamped.

    Attributes:
      receiver_BLN: direct effect (Eq 10, arXiv 2606.20097).
      sender_BLN: effect through the receivers; None if it was not measured.
      total_BLN: effect with nothing frozen; None if it was not measured.
      clean_B: readout of x.
      corrupted_B: readout of x'.
      skipped: pairs left out because their readouts differ by less than 0.5.
    """

    receiver_BLN: Float[np.ndarray, "B L N"]
    sender_BLN: Float[np.ndarray, "B L N"] | None
    total_BLN: Float[np.ndarray, "B L N"] | None
    clean_B: Float[np.ndarray, " B"]
    corrupted_B: Float[np.ndarray, " B"]
    skipped: int


def effects(
    clean_B: Float[np.ndarray, " B"],
    corrupted_B: Float[np.ndarray, " B"],
    patched_BX: Float[np.ndarray, "B ..."],
) -> Float[np.ndarray, "B ..."]:
    """Computes (m(x) - m(x; patch)) / (m(x) - m(x'))."""
    ones = (1,) * (patched_BX.ndim - 1)
    clean_B1, corrupted_B1 = (m_B.reshape(-1, *ones) for m_B in (clean_B, corrupted_B))
    return (clean_B1 - patched_BX) / (clean_B1 - corrupted_B1)


def usable_pairs(
    clean_B: Float[np.ndarray, " B"], corrupted_B: Float[np.ndarray, " B"], *, name: str
) -> np.ndarray:
    """Returns indices of the pairs whose readouts differ by at least 0.5.

    Raises:
      UserError: fewer than 6 pairs of the sub-probe `name` are usable.
    """
    usable = np.flatnonzero(clean_B - corrupted_B >= MIN_DENOMINATOR)
    if len(usable) < MIN_PAIRS:
        raise UserError(
            f"probe {name}: the answer and its replacement move the model's readout by 0.5 or more "
            f"in {len(usable)} of {len(clean_B)} pairs, and {MIN_PAIRS} are needed; use more "
            "pairs, shorter documents, fewer needles, another template, or a model that retrieves "
            "needles"
        )
    return usable
