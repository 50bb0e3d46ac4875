"""Writes a table of head scores as a CSV file, for people and pandas, and reads it."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import replacing
from hydrahead_jax.local_path import local_path

EFFECTS = ("receiver", "raw_receiver", "sender", "raw_sender", "total")
READOUTS = ("clean", "corrupted")
_BASELINE = ["-1", "-1"]


class Table(NamedTuple):
    """Says what the file has in its rows and columns.

    Attributes:
      probes: names of the sub-probes P.
      capabilities: one for each sub-probe, without a colon.
      softmax_LN: False for delta-rule heads.
      heads: what follows from the effects, [L, N] for each column; not read back.
      effects_XPLN: effects in the order of EFFECTS; nan, an empty cell, where not measured, and for
        delta-rule heads.
      readouts_YP: readouts in the order of READOUTS.
    """

    probes: tuple[str, ...]
    capabilities: tuple[str, ...]
    softmax_LN: np.ndarray
    heads: dict[str, np.ndarray]
    effects_XPLN: np.ndarray
    readouts_YP: np.ndarray


def save(table: Table, path: Path) -> None:
    """Writes a baseline row, which alone holds the readouts, and a row per head.

    The baseline row has layer -1 and head -1.
    """
    readouts = table.readouts_YP.ravel().tolist()
    header = _header(table.capabilities, table.probes, tuple(table.heads))
    blank = [""] * (len(header) - len(_BASELINE) - len(readouts))
    with replacing(local_path(path)) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerow([*_BASELINE, *blank, *readouts])
        for at in np.ndindex(table.softmax_LN.shape):
            heads = [x_LN[at].item() for x_LN in table.heads.values()]
            heads = [int(x) if isinstance(x, bool) else x for x in heads]
            effects = table.effects_XPLN[:, :, *at].ravel().tolist()
            effects = ["" if np.isnan(x) else x for x in effects]
            softmax = int(table.softmax_LN[at])
            writer.writerow([*at, softmax, *heads, *effects, *[""] * len(readouts)])


def load(path: Path) -> Table:
    """Reads what `save` wrote, but for the columns `heads`.

    Raises:
      UserError: the file is missing or is not such a table.
    """
    path = local_path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = _parse(list(csv.reader(file)))
        _check(table)
    except OSError as error:
        raise UserError(
            f"{path} is not a table of head scores: {error.strerror}; make one by `python -m "
            "train select`"
        ) from error
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table of head scores: {error}; make one by `python -m train select`"
        ) from error
    return table


def _header(
    capabilities: tuple[str, ...], probes: tuple[str, ...], heads: tuple[str, ...]
) -> list[str]:
    names = [f"{c}:{p}" for c, p in zip(capabilities, probes, strict=True)]
    columns = [f"{name}:{kind}" for kind in EFFECTS + READOUTS for name in names]
    return ["layer", "head", "softmax", *heads, *columns]


def _parse(lines: list[list[str]]) -> Table:
    if len(lines) < 3:
        raise ValueError("it has no heads")
    header, baseline, *rows = lines
    names = [c.removesuffix(":clean").split(":", 1) for c in header if c.endswith(":clean")]
    if not names or any(len(name) != 2 for name in names):
        raise ValueError("it has no sub-probes")
    capabilities, probes = zip(*names, strict=True)
    P = len(probes)
    first, last = len(header) - (len(EFFECTS) + len(READOUTS)) * P, -len(READOUTS) * P
    if header != _header(capabilities, probes, tuple(header[3:first])):
        raise ValueError("its columns are others; score the heads again")
    if any(len(row) != len(header) for row in (baseline, *rows)):
        raise ValueError("a row is shorter or longer than the header")
    L, N = _shape(baseline, rows)
    effects = [[_number(cell) for cell in row[first:last]] for row in rows]
    readouts = [_number(cell) for cell in baseline[last:]]
    return Table(
        probes=probes,
        capabilities=capabilities,
        softmax_LN=np.array([row[2] == "1" for row in rows]).reshape(L, N),
        heads={},
        effects_XPLN=np.array(effects).T.reshape(len(EFFECTS), P, L, N),
        readouts_YP=np.array(readouts).reshape(len(READOUTS), P),
    )


def _shape(baseline: list[str], rows: list[list[str]]) -> tuple[int, int]:
    """Returns the number of layers, and of heads per layer."""
    if baseline[:2] != _BASELINE:
        raise ValueError("its first row is not the baseline row, layer -1 and head -1")
    L, N = int(rows[-1][0]) + 1, int(rows[-1][1]) + 1
    if len(rows) != L * N or any(
        row[:2] != [str(l), str(n)] for row, (l, n) in zip(rows, np.ndindex(L, N), strict=True)
    ):
        raise ValueError("the rows are not all heads of all layers in order")
    if any(row[2] not in ("0", "1") for row in rows):
        raise ValueError("the column softmax holds something else than 0 and 1")
    return L, N


def _number(cell: str) -> float:
    return float(cell) if cell else np.nan


def _check(table: Table) -> None:
    if not np.isfinite(table.readouts_YP).all():
        raise ValueError("the baseline row lacks a readout")
    effects = dict(zip(EFFECTS, table.effects_XPLN[..., table.softmax_LN], strict=True))
    if not np.isfinite([effects["receiver"], effects["raw_receiver"]]).all():
        raise ValueError("a softmax head lacks a direct effect")
    clamped = np.array([effects["receiver"], effects["sender"]])
    if np.isinf(table.effects_XPLN).any() or (clamped < 0).any() or (clamped > 1).any():
        raise ValueError("an effect is infinite, or a clamped one is not between 0 and 1")
