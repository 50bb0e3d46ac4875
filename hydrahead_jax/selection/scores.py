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
        columns = [f"{c}:{p}" for c, p in zip(self.capabilities, self.probes, strict=True)]
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["layer", "head", "score", *(f"{c}:{kind}" for c in columns for kind in _KINDS)]
            )
            readouts = zip(self.clean_P, self.corrupted_P, strict=True)
            cells = [cell for pair in readouts for cell in ("", "", *map(float, pair))]
            writer.writerow([-1, -1, "", *cells])
            for layer, head in np.ndindex(self.layers, self.query_heads):
                at = (slice(None), layer, head)
                effects = zip(self.effect_PLN[at], self.raw_PLN[at], strict=True)
                cells = [cell for pair in effects for cell in (*map(float, pair), "", "")]
                writer.writerow([layer, head, float(self.score_LN[layer, head]), *cells])

    @classmethod
    def load_csv(cls, path: Path) -> "HeadScores":
        """Reads what `save_csv` wrote; the score column follows from the others and is not read.

        Raises:
          UserError: the file is missing or is not a table of head scores.
        """
        try:
            with Path(path).open(newline="") as file:
                header, baseline, *rows = csv.reader(file)
            names = [column.split(":") for column in header[3 :: len(_KINDS)]]
            capabilities, probes, _ = zip(*names, strict=True)
            if baseline[:2] != ["-1", "-1"]:
                raise ValueError("the row of layer -1, head -1 is missing")
            layers, heads = (1 + max(int(row[i]) for row in rows) for i in (0, 1))
            if [row[:2] for row in rows] != [
                [str(l), str(n)] for l, n in np.ndindex(layers, heads)
            ]:
                raise ValueError("the rows are not all heads of all layers in order")
            read = lambda row, kind: [float(c) for c in row[3 + _KINDS.index(kind) :: len(_KINDS)]]
            table = lambda kind: np.array([read(row, kind) for row in rows]).T.reshape(
                len(probes), layers, heads
            )
            return cls(
                probes=probes,
                capabilities=capabilities,
                effect_PLN=table("effect"),
                raw_PLN=table("raw"),
                clean_P=np.array(read(baseline, "clean")),
                corrupted_P=np.array(read(baseline, "corrupted")),
            )
        except (OSError, ValueError, IndexError) as error:
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
