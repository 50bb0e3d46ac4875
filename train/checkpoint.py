"""Checkpoints: parameters, optimizer state and the position in the data. orbax lives here only."""

import json
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from train.run_folder import write_json
from train.step import TrainState

_KEEP = 3
_SEAL = "checksums.json"
_ITEMS = ("params", "opt_state", "data")


class Saved(NamedTuple):
    """A checkpoint after `step` steps of the whole run."""

    step: int
    state: TrainState
    frozen: dict[str, jax.Array]
    data: dict


class CheckpointStore:
    """The newest checkpoints of a run, written in the background.

    A checkpoint is sealed with its files' checksums once it is complete, and read only if they
    still hold: damaged weights may decompress without complaint.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._manager = self._open()
        self._background = ThreadPoolExecutor(1)
        self._sealing: Future | None = None

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEEP, create=True)
        return ocp.CheckpointManager(self._folder, options=options, item_names=_ITEMS)

    def save(self, step: int, state: TrainState, frozen: dict, data: dict) -> None:
        """Takes a snapshot; the caller may donate the arrays at once."""
        self.wait()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.trainable | frozen),
                opt_state=ocp.args.StandardSave(_numbered(state.opt_state)),
                data=ocp.args.JsonSave(data),
            ),
            force=True,
        )
        self._sealing = self._background.submit(self._seal, step)

    def _seal(self, step: int) -> None:
        self._manager.wait_until_finished()
        folder = self._folder / str(step)
        write_json(folder / _SEAL, _checksums(folder))

    def restore_newest(
        self,
        abstract: Callable[[int], tuple[TrainState, dict]],
        say: Callable[[str], None],
    ) -> Saved | None:
        """The newest checkpoint that is whole; newer ones are said not to be, and removed.

        Args:
          abstract: shapes of the trainable state and of the frozen parameters at a step.
          say: takes one sentence.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        flaws = {}
        for step in steps:
            flaw = self.flaw(step)
            if flaw is None:
                break
            flaws[step] = flaw
        whole = [step for step in steps if step not in flaws]
        then = f"continuing from the one at step {whole[0]}" if whole else "the run starts anew"
        for step, flaw in flaws.items():
            shutil.rmtree(self._folder / str(step))
            say(f"the checkpoint at step {step} {flaw}; {then}")
        if flaws:
            self._manager.close()
            self._manager = self._open()
        return self._restore(whole[0], *abstract(whole[0])) if whole else None

    def flaw(self, step: int) -> str | None:
        """Why a checkpoint cannot be read, if so: "is incomplete", "is damaged (...)"."""
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
                params=ocp.args.StandardRestore(_on_device(params)),
                opt_state=ocp.args.StandardRestore(_on_device(opt_state)),
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
        """The parameters after `step` steps, `params` being their shapes; see `flaw` first."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_on_device(params)))
        return self._manager.restore(step, args=args)["params"]

    def wait(self) -> None:
        """Returns when everything is on disk."""
        if self._sealing is not None:
            self._sealing.result()
            self._sealing = None

    def close(self) -> None:
        self._background.shutdown()
        self._manager.close()


def _numbered(tree) -> dict[str, jax.Array]:
    """Leaves under names that sort in their order; optax's own types stay out of the files."""
    return {f"leaf_{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _on_device(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _checksums(folder: Path) -> dict[str, int]:
    """File within the folder -> CRC-32 of its content."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _SEAL)
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum
