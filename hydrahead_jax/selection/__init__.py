"""Which heads retrieval cannot do without: probes, scores, head plans and the checks on them.

`heat_map` is imported by name only: it needs matplotlib.
"""

from hydrahead_jax.selection.allocate import STRATEGIES, allocate, budget, receivers_kept
from hydrahead_jax.selection.pipeline import SelectionSettings, select
from hydrahead_jax.selection.scores import HeadScores

__all__ = [
    "STRATEGIES",
    "HeadScores",
    "SelectionSettings",
    "allocate",
    "budget",
    "receivers_kept",
    "select",
]
