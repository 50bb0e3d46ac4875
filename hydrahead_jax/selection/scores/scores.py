"""Computes one score per head from its effects (Eq 11 and 12, arXiv 2606.20097)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from hydrahead_jax.errors import UserError
from hydrahead_jax.selection.probes.retrieval import SubProbe
from hydrahead_jax.selection.scores import csv_file
from hydrahead_jax.selection.scores.pair_effects import PairEffects
from hydrahead_jax.selection.scores.statistics import THRESHOLD, consistency, gini, min_max

RETRIEVAL, GENERAL = "retrieval", "general"


class MeanEffects(NamedTuple):
    """Averages one kind of effect on every sub-probe P over its pairs.

    Attributes:
      clamped_PLN: mean of the effect clamped to [0, 1] in each pair.
      raw_PLN: mean of the effect without clamping.
    """

    clamped_PLN: Float[np.ndarray, "P L N"]
    raw_PLN: Float[np.ndarray, "P L N"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeadScores:
    """Computes the scores of all heads from their effects on every sub-probe P.

    Delta-rule heads, of a model that is a hybrid already, have effect and score 0.

    Attributes:
      probes: unique names of the sub-probes.
      capabilities: the capability of each sub-probe; no name has a colon.
      softmax_LN: True for the heads that are softmax attention in the model.
      receiver: direct effects.
      sender: effects through receivers, nan for a head not measured; None if none was.
      total_PLN: mean effect with nothing frozen, not clamped; nan and None as for the senders.
      clean_P: mean readout of the documents.
      corrupted_P: mean readout of their counterfactuals.

    Raises:
      UserError: two sub-probes have one name, or a capability has a colon.
    """

    probes: tuple[str, ...]
    capabilities: tuple[str, ...]
    softmax_LN: Bool[np.ndarray, "L N"]
    receiver: MeanEffects
    sender: MeanEffects | None = None
    total_PLN: Float[np.ndarray, "P L N"] | None = None
    clean_P: Float[np.ndarray, " P"]
    corrupted_P: Float[np.ndarray, " P"]

    def __post_init__(self):
        if len(set(self.probes)) < len(self.probes):
            raise UserError(f"sub-probes need names of their own, not {', '.join(self.probes)}")
        if any(":" in capability for capability in self.capabilities):
            raise UserError(
                f"a capability has a colon in its name: {', '.join(self.capabilities)}; rename it"
            )

    @property
    def layers(self) -> int:
        return self.softmax_LN.shape[0]

    @property
    def query_heads(self) -> int:
        return self.softmax_LN.shape[1]

    @property
    def capability_names(self) -> tuple[str, ...]:
        """Returns each capability once, in the order of the sub-probes."""
        return tuple(dict.fromkeys(self.capabilities))

    @property
    def effect_PLN(self) -> np.ndarray:
        """Returns the larger clamped effect, of the direct one and that through receivers."""
        if self.sender is None:
            return self.receiver.clamped_PLN
        return np.fmax(self.receiver.clamped_PLN, self.sender.clamped_PLN)

    @property
    def raw_PLN(self) -> np.ndarray:
        """Returns the unclamped effect that is farther from 0.

        The choice is between the direct effect and the effect through receivers.
        """
        raw_PLN = self.receiver.raw_PLN
        if self.sender is None:
            return raw_PLN
        return np.where(np.abs(self.sender.raw_PLN) > np.abs(raw_PLN), self.sender.raw_PLN, raw_PLN)

    def effect_LN(self, capability: str) -> np.ndarray:
        """Returns the mean effect over the sub-probes of a capability."""
        return self.effect_PLN[self._of(capability)].mean(axis=0)

    def kappa_LN(self, capability: str) -> np.ndarray:
        """Returns the share of the capability's sub-probes in which |effect| is at least 0.01."""
        return consistency(self.raw_PLN[self._of(capability)])

    def capability_LN(self, capability: str) -> np.ndarray:
        """Returns effect times kappa (Eq 11)."""
        return self.effect_LN(capability) * self.kappa_LN(capability)

    def normalised_LN(self, capability: str) -> np.ndarray:
        """Returns effect times kappa, brought to [0, 1] over the softmax heads.

        With "retrieval", these are the scores without the other capabilities.
        """
        return min_max(self.capability_LN(capability), self.softmax_LN)

    @property
    def score_LN(self) -> np.ndarray:
        """Returns the mean over capabilities of the normalised scores (Eq 12)."""
        return np.mean([self.normalised_LN(c) for c in self.capability_names], axis=0)

    @property
    def mean_abs_LN(self) -> np.ndarray:
        """Returns the mean |effect| over all sub-probes, which orders heads of equal score."""
        return np.abs(self.raw_PLN).mean(axis=0)

    @property
    def total_LN(self) -> np.ndarray:
        """Returns the mean |total effect| over all sub-probes, 0 where it was not measured."""
        if self.total_PLN is None:
            return np.zeros(self.softmax_LN.shape)
        return np.nan_to_num(np.abs(self.total_PLN)).mean(axis=0)

    @property
    def receivers_LN(self) -> np.ndarray:
        """Returns True where the direct effect on some capability is at least 0.01."""
        return self._reaches_threshold(self.receiver.clamped_PLN)

    @property
    def critical_LN(self) -> np.ndarray:
        """Returns True where the effect on some capability is at least 0.01.

        These are receivers and senders.
        """
        return self._reaches_threshold(self.effect_PLN)

    @property
    def convertible_LN(self) -> np.ndarray:
        """Returns True for softmax heads whose |effect| is below 0.01 in every sub-probe."""
        return self.softmax_LN & (consistency(self.raw_PLN) == 0)

    @property
    def gini_L(self) -> np.ndarray:
        """Returns how unequally each layer's softmax heads share the effect.

        It is averaged over sub-probes.
        """
        layers = zip(self.effect_PLN.mean(axis=0), self.softmax_LN, strict=True)
        return np.array([gini(effect_N[softmax_N]) for effect_N, softmax_N in layers])

    def save_csv(self, path: Path) -> None:
        """Writes a baseline row and one row per head; docs/selection.md names the columns."""
        unmeasured_PLN = np.full_like(self.receiver.raw_PLN, np.nan)
        sender = self.sender or (unmeasured_PLN, unmeasured_PLN)
        total_PLN = unmeasured_PLN if self.total_PLN is None else self.total_PLN
        effects_XPLN = np.stack([*self.receiver, *sender, total_PLN])
        table = csv_file.Table(
            probes=self.probes,
            capabilities=self.capabilities,
            softmax_LN=self.softmax_LN,
            heads={
                "score": self.score_LN,
                **{f"{c}:score": self.normalised_LN(c) for c in self.capability_names},
                "critical": self.critical_LN,
                "is_receiver": self.receivers_LN,
                "convertible": self.convertible_LN,
            },
            effects_XPLN=np.where(self.softmax_LN, effects_XPLN, np.nan),
            readouts_YP=np.stack([self.clean_P, self.corrupted_P]),
        )
        csv_file.save(table, path)

    @classmethod
    def load_csv(cls, path: Path) -> "HeadScores":
        """Reads what `save_csv` wrote.

        Raises:
          UserError: the file is missing or is not a table of head scores.
        """
        table = csv_file.load(path)
        unmeasured_X = np.isnan(table.effects_XPLN[..., table.softmax_LN]).all(axis=(1, 2))
        effects_XPLN = np.where(table.softmax_LN, table.effects_XPLN, 0.0)
        effects = dict(zip(csv_file.EFFECTS, effects_XPLN, strict=True))
        measured = dict(zip(csv_file.EFFECTS, ~unmeasured_X, strict=True))
        sender = MeanEffects(effects["sender"], effects["raw_sender"])
        return cls(
            probes=table.probes,
            capabilities=table.capabilities,
            softmax_LN=table.softmax_LN,
            receiver=MeanEffects(effects["receiver"], effects["raw_receiver"]),
            sender=sender if measured["raw_sender"] else None,
            total_PLN=effects["total"] if measured["total"] else None,
            clean_P=table.readouts_YP[0],
            corrupted_P=table.readouts_YP[1],
        )

    def _of(self, capability: str) -> Sequence[int]:
        return [i for i, c in enumerate(self.capabilities) if c == capability]

    def _reaches_threshold(self, effect_PLN: np.ndarray) -> np.ndarray:
        means = [effect_PLN[self._of(c)].mean(axis=0) for c in self.capability_names]
        return np.any(np.array(means) >= THRESHOLD, axis=0)


def head_scores(
    probes: Sequence[SubProbe], effects: Sequence[PairEffects], softmax_LN: Bool[np.ndarray, "L N"]
) -> HeadScores:
    """Computes means over the pairs of each sub-probe.

    Args:
      probes: the sub-probes.
      effects: on the usable pairs of each; senders and totals of all sub-probes or of none.
      softmax_LN: False for the delta-rule heads of a hybrid, whose effects count as 0.
    """

    def means(name: str, clamp: bool) -> np.ndarray | None:
        values = [getattr(e, name) for e in effects]
        if values[0] is None:
            return None
        values = [np.clip(v_BLN, 0.0, 1.0) if clamp else v_BLN for v_BLN in values]
        return np.where(softmax_LN, np.stack([v_BLN.mean(axis=0) for v_BLN in values]), 0.0)

    receiver, sender = ((means(n, True), means(n, False)) for n in ("receiver_BLN", "sender_BLN"))
    return HeadScores(
        probes=tuple(probe.name for probe in probes),
        capabilities=tuple(probe.capability for probe in probes),
        softmax_LN=softmax_LN,
        receiver=MeanEffects(*receiver),
        sender=None if sender[0] is None else MeanEffects(*sender),
        total_PLN=means("total_BLN", False),
        clean_P=np.array([e.clean_B.mean() for e in effects]),
        corrupted_P=np.array([e.corrupted_B.mean() for e in effects]),
    )
