"""Which heads retrieval cannot do without: probes, scores, head plans and the checks on them.

`heat_map` is imported by name only: it needs matplotlib.
"""

from hydrahead_jax.selection.allocate import STRATEGIES, allocate, budget, receivers_kept
from hydrahead_jax.selection.pipeline import Selection, select
from hydrahead_jax.selection.scores import HeadScores
from hydrahead_jax.selection.settings import SelectionSettings

__all__ = [
    "STRATEGIES",
    "HeadScores",
    "Selection",
    "SelectionSettings",
    "allocate",
    "budget",
    "receivers_kept",
    "select",
]
