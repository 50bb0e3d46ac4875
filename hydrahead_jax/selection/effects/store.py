"""Stores results of finished batches on disk, so that scoring resumes where it stopped."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import plain, replacing
from hydrahead_jax.local_path import local_path
from hydrahead_jax.resumable import open_folder

_INPUTS = "inputs.json"


class Store:
    """Stores one .npz file for each stage and batch; without a folder it only computes.

    Raises:
      UserError: the folder holds results of other inputs, or cannot be written.
    """

    def __init__(self, folder: Path | None, inputs: dict):
        self._folder = None if folder is None else local_path(folder)
        if self._folder is None:
            return
        advice = "choose another folder"
        open_folder(self._folder, _INPUTS, plain(inputs), holds="set of scores", advice=advice)

    def result(
        self, name: str, compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Returns what `compute` gave for this name, an earlier time or now."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{name}.npz"
        found = _read(path)
        if found is not None:
            return found
        arrays = compute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error.strerror}; what was scored before is saved, so "
                "free space and run the command again"
            ) from error
        return arrays


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """Reads a file; returns None if there is no such file, or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile, KeyError):
        return None
