"""Makes plans once and saves them beside the data, or in memory where the folder is read-only."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from train.data.prepared.folder import LENGTHS, PreparedFolder
from train.data.prepared.packing import Packing, Plan, make_plan

PLANS = "plans"
_VERSION = 1


def plan_for(folder: PreparedFolder, row: int, packing: Packing) -> Plan:
    """Returns the plan of the folder's documents in rows of `row` tokens."""
    return _plan(folder.path, folder.checksum, row, packing)


@functools.lru_cache(maxsize=16)
def _plan(path: Path, checksum: str, row: int, packing: Packing) -> Plan:
    saved = path / PLANS / f"{packing}-{row}-{checksum[:16]}-{_VERSION}"
    if saved.is_dir():
        return _load(saved)
    plan = make_plan(np.load(path / LENGTHS), row, packing)
    try:
        _save(plan, saved)
    except OSError:
        return plan
    return _load(saved)


def _load(saved: Path) -> Plan:
    return Plan(*(np.load(saved / f"{name}.npy", mmap_mode="r") for name in Plan._fields))


def _save(plan: Plan, saved: Path) -> None:
    """Saves all of a plan or nothing; several processes may do so at once."""
    saved.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=saved.parent, prefix="partial-") as scratch:
        partial = Path(scratch) / saved.name
        partial.mkdir()  # has the usual mode; the scratch folder's is private
        for name, values in plan._asdict().items():
            np.save(partial / f"{name}.npy", values)
        if not saved.is_dir():
            partial.rename(saved)
