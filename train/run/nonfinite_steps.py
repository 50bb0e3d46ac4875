"""Counts steps whose gradients were not finite, saves their batches, and stops after too many."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hydrahead_jax.errors import UserError
from train import distributed
from train.data.batches import Batch

FOLDER = "skipped_batches"
_MOST_KEPT = 50


class Diverged(UserError):
    """Says that too many steps in a row were not finite; the last checkpoint is older than they."""


class Skipped:
    """Counts the skipped steps of one stage.

    Attributes:
      total: skipped steps since this process began.
    """

    def __init__(self, folder: Path, stage: str, most: int, say: Callable[[str], None]):
        self._folder, self._stage, self._most, self._say = folder, stage, most, say
        self._in_a_row, self.total = 0, 0

    def note(self, step: int, metrics: dict, batch: Batch, rows: tuple[int, ...]) -> bool:
        """Returns whether the step counts; saves its batch where it does not.

        Args:
          step: step of the stage.
          metrics: {name: (sum, count)} of the step, numbers.
          batch: this process' rows.
          rows: their numbers in the complete batch.

        Raises:
          Diverged: too many steps in a row were not finite.
        """
        bad = [name for name, (total, _) in metrics.items() if not math.isfinite(total)]
        if not metrics["skipped"][0] and "loss" not in bad:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        self.total += 1
        where = self._save(step, batch, rows)
        names = ", ".join(bad) or "gradient_norm"
        if self._in_a_row >= self._most:
            raise Diverged(
                f"stage {self._stage!r} diverged by step {step}: {names} not finite for "
                f"{self._in_a_row} steps in a row, whose batches are in {where.parent}; the last "
                "checkpoint stays, so lower optim.learning_rate and start a new run"
            )
        self._say(
            f"stage {self._stage!r}: step {step} changed nothing because {names} is not finite "
            f"({self._in_a_row} in a row, {self._most} stop the run); its batch is {where}"
        )
        return False

    def _save(self, step: int, batch: Batch, rows: tuple[int, ...]) -> Path:
        folder = self._folder / FOLDER
        path = folder / f"{self._stage}_{step}_process_{distributed.index()}.npz"
        folder.mkdir(exist_ok=True)
        if self.total <= _MOST_KEPT:
            arrays = {
                name: np.asarray(value) for name, value in vars(batch).items() if name != "teacher"
            }
            np.savez(path, rows=np.array(rows), **arrays)
        return path
