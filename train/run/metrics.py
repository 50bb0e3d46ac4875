"""Writes metrics of a run: metrics.jsonl, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import json
import sys
import zlib
from pathlib import Path

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import dumps, replacing
from train import distributed


def averages(window: list[dict]) -> dict[str, float]:
    """Returns the means of a list of {name: (sum, count)}; leaves out names without a count."""
    means = {}
    for name in window[0] if window else ():
        total = sum(float(metrics[name][0]) for metrics in window)
        count = sum(float(metrics[name][1]) for metrics in window)
        if count > 0:
            means[name] = total / count
    return means


class MetricsLog:
    """Writes metrics.jsonl, TensorBoard and, if asked for, Weights & Biases; only on process 0.

    A value that is not finite is null in metrics.jsonl, because JSON has no NaN.
    Lines that were written after `step`, by a process that was killed, are removed.
    """

    def __init__(self, folder: Path, file_name: str, step: int, wandb: str | None = None):
        self._file = self._board = self._wandb = None
        if not distributed.is_first():
            return
        self._path = folder / file_name
        _drop_after(self._path, step)
        self._file = self._path.open("a")
        self._board = _summary_writer()(str(folder / "tensorboard"), purge_step=step + 1)
        self._wandb = None if wandb is None else _start_wandb(wandb, folder)

    def write(self, step: int, stage: str, values: dict[str, float]) -> None:
        if self._file is None:
            return
        line = {"step": step, "stage": stage, **values}
        self._file.write(dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{stage}/{name}": v for name, v in values.items()}, step=step)

    def close(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # every line was flushed when it was written
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _summary_writer() -> type:
    """Returns TensorBoard's writer.

    Its package imports PyTorch where that is installed, which takes seconds, for graphs of PyTorch
    models; meanwhile PyTorch looks as if it were not installed.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


def check_wandb(project: str | None) -> None:
    """Raises UserError where Weights & Biases is asked for and not installed."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "running.wandb is set and wandb is not installed; pip install wandb, or leave it out"
        )


def _start_wandb(project: str, folder: Path):
    """Starts a run, or continues it under the same name."""
    import wandb

    name = f"{folder.name}-{zlib.crc32(str(folder.absolute()).encode()):08x}"
    return wandb.init(project=project, id=name, name=folder.name, dir=folder, resume="allow")


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            keep = json.loads(line)["step"] <= step
        except ValueError:
            keep = False
        if keep:
            kept.append(line + "\n")
    with replacing(path) as file:
        file.write("".join(kept))
