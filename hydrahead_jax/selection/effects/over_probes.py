"""Measures or estimates effects on the usable pairs of all sub-probes in one go."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.selection.effects.measure import Measure
from hydrahead_jax.selection.effects.sender import Receivers
from hydrahead_jax.selection.probes.pairs import ProbePairs
from hydrahead_jax.selection.scores.pair_effects import effects
from hydrahead_jax.selection.scores.ranking import Head

Progress = Callable[[str, int, int], None]


class UsablePairs(NamedTuple):
    """Carries one sub-probe's usable pairs, their readouts and direct effects."""

    name: str
    pairs: ProbePairs
    clean_B: np.ndarray
    corrupted_B: np.ndarray
    receiver_BLN: np.ndarray

    def effects(self, patched_BLN: np.ndarray) -> np.ndarray:
        return effects(self.clean_B, self.corrupted_B, patched_BLN)

    def of_drop(self, drop_BLN: np.ndarray) -> np.ndarray:
        """Returns effects from first-order drops of the readout."""
        return drop_BLN / (self.clean_B - self.corrupted_B)[:, None, None]

    def first(self) -> "UsablePairs":
        """Returns the first pair alone."""
        pairs = ProbePairs(*(x[:1] for x in self.pairs))
        return UsablePairs(self.name, pairs, *(x[:1] for x in self[2:]))


class Estimates(NamedTuple):
    """Carries first-order effects on one sub-probe, of senders at F points between x and x'."""

    direct_BLN: np.ndarray
    total_BLN: np.ndarray
    sender_FBLN: np.ndarray

    @property
    def sender_BLN(self) -> np.ndarray:
        return self.sender_FBLN.mean(axis=0)


class Stage:
    """Measures all sub-probes under one name, which is its place in the store too."""

    def __init__(self, measure: Measure, probes: Sequence[UsablePairs], progress: Progress):
        self.measure, self.probes, self.progress = measure, probes, progress

    @property
    def config(self) -> ModelConfig:
        return self.measure.config

    def senders(self, name: str, receivers: Receivers, heads: Sequence[Head]) -> list[np.ndarray]:
        """Returns effects [B, L, N] on each sub-probe; nan for heads that are not asked for."""
        return self._run(
            name,
            lambda where, probe, tick: probe.effects(
                self.measure.senders(where, probe.pairs, receivers, heads, tick)
            ),
        )

    def totals(self, name: str, heads: Sequence[Head]) -> list[np.ndarray]:
        """Measures like `senders`, with nothing frozen."""
        return self._run(
            name,
            lambda where, probe, tick: probe.effects(
                self.measure.totals(where, probe.pairs, heads, tick)
            ),
        )

    def estimates(self, name: str, receivers: Receivers) -> list[Estimates]:
        def one(where: str, probe: UsablePairs, tick) -> Estimates:
            slopes = self.measure.slopes(where, probe.pairs, receivers, tick)
            return Estimates(
                probe.of_drop(slopes["direct_BLN"]),
                probe.of_drop(slopes["total_BLN"]),
                np.stack([probe.of_drop(drop_BLN) for drop_BLN in slopes["sender_FBLN"]]),
            )

        return self._run(name, one)

    def _run(self, name: str, one: Callable) -> list:
        done, total = 0, sum(len(probe.clean_B) for probe in self.probes)

        def tick(new: int) -> None:
            nonlocal done
            done += new
            self.progress(name, done, total)

        folder = name.replace(", ", "/").replace(" ", "_")
        return [one(f"{folder}/{probe.name}", probe, tick) for probe in self.probes]
