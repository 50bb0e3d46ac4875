"""Head scores: from direct effects to one number per head (Eq 11 and 12, arXiv 2606.20097)."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hydrahead_jax.errors import UserError

THRESHOLD = 0.01
_KINDS = ("effect", "raw", "clean", "corrupted")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeadScores:
    """Direct effects of every head on every sub-probe P, and the scores that follow from them.

    Attributes:
      probes: names of the sub-probes.
      capabilities: the capability of each sub-probe.
      effect_PLN: mean over pairs of the effect, clamped to [0, 1] in each pair.
      raw_PLN: mean over pairs of the effect as it is.
      clean_P: mean readout of the documents.
      corrupted_P: mean readout of their counterfactuals.
    """

    probes: tuple[str, ...]
    capabilities: tuple[str, ...]
    effect_PLN: Float[np.ndarray, "P L N"]
    raw_PLN: Float[np.ndarray, "P L N"]
    clean_P: Float[np.ndarray, " P"]
    corrupted_P: Float[np.ndarray, " P"]

    @property
    def layers(self) -> int:
        return self.effect_PLN.shape[1]

    @property
    def query_heads(self) -> int:
        return self.effect_PLN.shape[2]

    def effect_LN(self, capability: str) -> np.ndarray:
        """Mean effect over the sub-probes of a capability."""
        return self.effect_PLN[self._of(capability)].mean(axis=0)

    def kappa_LN(self, capability: str) -> np.ndarray:
        """Fraction of the capability's sub-probes in which |effect| is at least 0.01."""
        return consistency(self.raw_PLN[self._of(capability)])

    def capability_LN(self, capability: str) -> np.ndarray:
        """Effect times kappa, before normalisation."""
        return self.effect_LN(capability) * self.kappa_LN(capability)

    @property
    def score_LN(self) -> np.ndarray:
        """Mean over capabilities of the min-max normalised effect times kappa."""
        return np.mean([min_max(self.capability_LN(c)) for c in self._capabilities()], axis=0)

    @property
    def mean_abs_LN(self) -> np.ndarray:
        """Mean |effect| over all sub-probes: what orders heads of equal score."""
        return np.abs(self.raw_PLN).mean(axis=0)

    @property
    def critical_LN(self) -> np.ndarray:
        """True for a receiver: the effect on some capability is at least 0.01."""
        return np.any([self.effect_LN(c) >= THRESHOLD for c in self._capabilities()], axis=0)

    @property
    def convertible_LN(self) -> np.ndarray:
        """True where |effect| is below 0.01 in every sub-probe."""
        return consistency(self.raw_PLN) == 0

    @property
    def gini_L(self) -> np.ndarray:
        """How unequally each layer's heads share the effect, averaged over sub-probes."""
        return np.array([gini(effect_N) for effect_N in self.effect_PLN.mean(axis=0)])

    def save_csv(self, path: Path) -> None:
        """One row per head, and before them a baseline row, layer -1 and head -1, which alone
        holds the clean and the corrupted readouts."""
        blank = [""] * (2 * len(self.probes))
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_header(self.capabilities, self.probes))
            writer.writerow(
                [-1, -1, "", *blank, *self.clean_P.tolist(), *self.corrupted_P.tolist()]
            )
            for layer, head in np.ndindex(self.layers, self.query_heads):
                effects_P = [x[:, layer, head].tolist() for x in (self.effect_PLN, self.raw_PLN)]
                score = float(self.score_LN[layer, head])
                writer.writerow([layer, head, score, *effects_P[0], *effects_P[1], *blank])

    @classmethod
    def load_csv(cls, path: Path) -> "HeadScores":
        """Reads what `save_csv` wrote; the score column follows from the others and is not read.

        Raises:
          UserError: the file is missing or is not a table of head scores.
        """
        try:
            with Path(path).open(newline="") as file:
                return cls(**_parse(list(csv.reader(file))))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a table of head scores: {error}") from error

    def _capabilities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.capabilities))

    def _of(self, capability: str) -> Sequence[int]:
        return [i for i, c in enumerate(self.capabilities) if c == capability]


def consistency(raw_PLN: np.ndarray) -> np.ndarray:
    """kappa: the fraction of sub-probes in which |effect| is at least 0.01."""
    return (np.abs(raw_PLN) >= THRESHOLD).mean(axis=0)


def min_max(x: np.ndarray) -> np.ndarray:
    """Brings the smallest value to 0 and the largest to 1; equal values all become 0."""
    spread = x.max() - x.min()
    return (x - x.min()) / spread if spread > 0 else np.zeros_like(x)


def gini(x: np.ndarray) -> float:
    """Gini coefficient of numbers >= 0: 0 for equal shares, 1 - 1/n where one has all; 0 for
    all zeros."""
    n, total = len(x), x.sum()
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return float(ranks @ np.sort(x) / (n * total)) if total > 0 else 0.0


def _header(capabilities: Sequence[str], probes: Sequence[str]) -> list[str]:
    names = [f"{c}:{p}" for c, p in zip(capabilities, probes, strict=True)]
    return ["layer", "head", "score", *(f"{name}:{kind}" for kind in _KINDS for name in names)]


def _parse(lines: list[list[str]]) -> dict:
    """The fields of HeadScores."""
    if len(lines) < 3 or len(lines[0]) < 3 + len(_KINDS):
        raise ValueError("it has no heads or no sub-probes")
    header, baseline, *rows = lines
    P = (len(header) - 3) // len(_KINDS)
    names = [tuple(column.split(":")[:2]) for column in header[3 : 3 + P]]
    capabilities, probes = zip(*names, strict=True)
    if header != _header(capabilities, probes) or baseline[:2] != ["-1", "-1"]:
        raise ValueError("the header or the baseline row is another")
    L, N = int(rows[-1][0]) + 1, int(rows[-1][1]) + 1
    if [row[:2] for row in rows] != [[str(l), str(n)] for l, n in np.ndindex(L, N)]:
        raise ValueError("the rows are not all heads of all layers in order")
    if any(len(row) != len(header) for row in (baseline, *rows)):
        raise ValueError("a row is shorter or longer than the header")
    effects = np.array([row[3 : 3 + 2 * P] for row in rows], float).T.reshape(2, P, L, N)
    readouts = np.array(baseline[3 + 2 * P :], float).reshape(2, P)
    return {
        "probes": probes,
        "capabilities": capabilities,
        "effect_PLN": effects[0],
        "raw_PLN": effects[1],
        "clean_P": readouts[0],
        "corrupted_P": readouts[1],
    }
