"""Saves parameters, optimizer state and the position in the data. Only this module uses orbax."""

import contextlib
import json
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from train import distributed
from train.files.run_folder import write_json
from train.run.disk import WriteFailed, write_failed
from train.run.train_step import TrainState

_CHECKSUM_THREADS = 8
_SEAL = "checksums.json"
_ITEMS = ("params", "opt_state", "data")


class Saved(NamedTuple):
    """Holds a checkpoint after `step` steps of the run, counted over all stages."""

    step: int
    state: TrainState
    frozen: dict[str, jax.Array]
    data: dict


class CheckpointStore:
    """Writes the newest checkpoints of a run in the background; every process writes its shards.

    A checkpoint is sealed by the first process with its files' checksums once it is complete, and
    read only if they still hold: damaged weights may decompress without complaint. All processes
    call the methods in the same order and see the same folder.

    Attributes:
      last: step of the newest complete checkpoint, None as long as none is known.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self._folder, self._keep = folder.absolute(), keep
        self._manager = self._open()
        self._background = ThreadPoolExecutor(1)
        self._sealing: Future | None = None
        self._saving, self._has_failed = 0, False
        self.last: int | None = None

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
        return ocp.CheckpointManager(self._folder, options=options, item_names=_ITEMS)

    def save(self, step: int, state: TrainState, frozen: dict, data: dict) -> None:
        """Takes a snapshot; the caller may donate the arrays at once.

        Raises:
          WriteFailed: this checkpoint or the one before cannot be written.
        """
        self.wait()
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.trainable | frozen),
                    opt_state=ocp.args.StandardSave(_numbered(state.opt_state)),
                    data=ocp.args.JsonSave(data),
                ),
                force=True,
            )
        except Exception as error:
            raise self._failed(error) from error
        self._sealing = self._background.submit(self._seal, step)

    def _seal(self, step: int) -> None:
        self._manager.wait_until_finished()
        folder = self._folder / str(step)
        if distributed.is_first():
            write_json(folder / _SEAL, _checksums(folder))

    def _failed(self, error: Exception) -> WriteFailed:
        self._has_failed = True
        what = f"the checkpoint of step {self._saving}"
        return write_failed(what, self._folder.parent, error, self.last)

    def check(self) -> None:
        """Raises WriteFailed as soon as a failure is known; does not wait."""
        if self._sealing is not None and self._sealing.done():
            self.wait()

    def restore_newest(
        self, abstract: Callable[[int], tuple[TrainState, dict]], say: Callable[[str], None]
    ) -> Saved | None:
        """Restores the newest complete checkpoint; reports newer ones as flawed, and removes them.

        Args:
          abstract: returns the shapes of the trainable state and the frozen parameters at a step.
          say: takes one sentence.
        """
        choice = distributed.agree("checkpoint", self._choose)
        step, flaws = choice["step"], choice["flaws"]
        then = "the run starts anew" if step is None else f"continuing from the one at step {step}"
        for flawed, flaw in flaws:
            say(f"the checkpoint at step {flawed} {flaw}; {then}")
        if flaws:
            self._manager.close()
            self._manager = self._open()
        self.last = step
        return None if step is None else self._restore(step, *abstract(step))

    def _choose(self) -> dict:
        """Returns the newest complete step, or None, and the flaws of newer ones; removes those."""
        flaws = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            flaw = self.flaw(step)
            if flaw is None:
                return {"step": step, "flaws": flaws}
            flaws.append((step, flaw))
            shutil.rmtree(self._folder / str(step))
        return {"step": None, "flaws": flaws}

    def flaw(self, step: int) -> str | None:
        """Returns why a checkpoint cannot be read, such as "is incomplete", or None."""
        folder = self._folder / str(step)
        if not (folder / _SEAL).is_file():
            return "is incomplete"
        try:
            sealed = json.loads((folder / _SEAL).read_text())
        except ValueError:
            return f"is damaged ({_SEAL} has changed)"
        found = _checksums(folder)
        for name, checksum in sealed.items():
            if found.get(name) != checksum:
                return f"is damaged ({name} {'has changed' if name in found else 'is missing'})"
        return None

    def _restore(self, step: int, state: TrainState, frozen: dict) -> Saved:
        params, opt_state = state.trainable | frozen, _numbered(state.opt_state)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_placed(params)),
                opt_state=ocp.args.StandardRestore(_placed(opt_state)),
                data=ocp.args.JsonRestore(),
            ),
        )
        leaves = [items["opt_state"][key] for key in opt_state]
        restored = TrainState(
            {path: items["params"][path] for path in state.trainable},
            jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves),
        )
        rest = {path: items["params"][path] for path in frozen}
        return Saved(step, restored, rest, items["data"])

    def restore_params(self, step: int, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Restores the parameters after `step` steps; call `flaw` first.

        Args:
          params: shapes of the parameters.
        """
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_placed(params)))
        return self._manager.restore(step, args=args)["params"]

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          WriteFailed: it cannot be written.
        """
        if self._sealing is None:
            return
        sealing, self._sealing = self._sealing, None
        try:
            sealing.result()
        except Exception as error:
            raise self._failed(error) from error
        self.last = self._saving

    def settled(self) -> int | None:
        """Returns `last`, once the checkpoint that is being written has succeeded or failed."""
        with contextlib.suppress(WriteFailed):
            self.wait()
        return self.last

    def close(self) -> None:
        self._background.shutdown()
        try:
            self._manager.close()
        except Exception:
            if not self._has_failed:  # otherwise this error was raised before
                raise


def _numbered(tree) -> dict[str, jax.Array]:
    """Names leaves so that they sort in their order; optax's own types stay out of the files."""
    return {f"leaf_{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _placed(tree):
    """Returns shapes with their shardings; those that have none go to the default device."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or default), tree
    )


def _checksums(folder: Path) -> dict[str, int]:
    """Returns the CRC-32 of the content of each file within the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _SEAL)
    with ThreadPoolExecutor(_CHECKSUM_THREADS) as pool:
        checksums = list(pool.map(_checksum, files))
    names = [path.relative_to(folder).as_posix() for path in files]
    return dict(zip(names, checksums, strict=True))


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum
