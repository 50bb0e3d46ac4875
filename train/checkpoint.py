"""Checkpoints: parameters, optimizer state and the position in the data. orbax lives here only."""

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from train.step import TrainState

_KEEP = 3


class Saved(NamedTuple):
    """A checkpoint after `step` steps of the whole run."""

    step: int
    state: TrainState
    frozen: dict[str, jax.Array]
    data: dict


class CheckpointStore:
    """The newest checkpoints of a run, written in the background.

    Every array's checksum is stored beside it: a damaged file may still decompress.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEEP, create=True)
        names = ("params", "opt_state", "meta")
        return ocp.CheckpointManager(self._folder, options=options, item_names=names)

    def save(self, step: int, state: TrainState, frozen: dict, data: dict) -> None:
        """Takes a snapshot; the caller may donate the arrays at once."""
        params, opt_state = state.trainable | frozen, _numbered(state.opt_state)
        meta = {"data": data, "checksums": _checksums(params) | _checksums(opt_state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )

    def restore_newest(
        self,
        abstract: Callable[[int], tuple[TrainState, dict]],
        say: Callable[[str], None],
    ) -> Saved | None:
        """The newest checkpoint that is whole; newer, damaged ones are said to be so and removed.

        Args:
          abstract: shapes of the trainable state and of the frozen parameters at a step.
          say: takes one sentence.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                saved = self._restore(step, *abstract(step))
            except Exception as error:
                damaged.append((step, str(error).splitlines()[0][:200] if str(error) else "?"))
                continue
            self._discard(damaged, f"continuing from the one at step {step}", say)
            return saved
        self._discard(damaged, "no earlier one is left, so the run starts anew", say)
        return None

    def _restore(self, step: int, state: TrainState, frozen: dict) -> Saved:
        params, opt_state = state.trainable | frozen, _numbered(state.opt_state)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_on_device(params)),
                opt_state=ocp.args.StandardRestore(_on_device(opt_state)),
                meta=ocp.args.JsonRestore(),
            ),
        )
        _check(items["params"] | dict(items["opt_state"]), items["meta"])
        leaves = [items["opt_state"][key] for key in opt_state]
        tree = jax.tree.structure(state.opt_state)
        restored = TrainState(
            {path: items["params"][path] for path in state.trainable},
            jax.tree.unflatten(tree, leaves),
        )
        rest = {path: items["params"][path] for path in frozen}
        return Saved(step, restored, rest, items["meta"]["data"])

    def restore_params(self, step: int, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The parameters after `step` steps, `params` being their shapes.

        Raises:
          Exception: there is no such checkpoint, or it is damaged.
        """
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_on_device(params)), meta=ocp.args.JsonRestore()
            ),
        )
        _check(items["params"], items["meta"])
        return items["params"]

    def _discard(self, damaged: list[tuple[int, str]], then: str, say) -> None:
        if not damaged:
            return
        for step, _ in damaged:
            shutil.rmtree(self._folder / str(step))
        self._manager.close()
        self._manager = self._open()
        for index, (step, reason) in enumerate(damaged):
            end = then if index == len(damaged) - 1 else "looking at the one before"
            say(f"the checkpoint at step {step} is damaged ({reason}); {end}")

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _numbered(tree) -> dict[str, jax.Array]:
    """Leaves under names that sort in their order; optax's own types stay out of the files."""
    return {f"leaf_{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _on_device(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _check(leaves: dict[str, jax.Array], meta: dict) -> None:
    for path, checksum in _checksums(leaves).items():
        if meta["checksums"].get(path) != checksum:
            raise ValueError(f"the checksum of {path} is wrong")


def _checksums(leaves: dict[str, jax.Array]) -> dict[str, int]:
    return {
        path: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
        for path, leaf in leaves.items()
    }
