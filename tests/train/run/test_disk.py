"""Checks what is known of the disk before a run begins."""

import types

import jax.numpy as jnp
import pytest

from hydrahead_jax.errors import UserError
from train.files.run_folder import open_run
from train.run import disk


@pytest.mark.parametrize(
    ("free", "outcome"), [(1.9, "refused"), (2.1, "warned"), (3.9, "warned"), (4.1, "quiet")]
)
def test_room_for_checkpoints_is_checked_before_the_run(free, outcome, tmp_path, monkeypatch):
    """Three checkpoints stay and one more is being written."""
    usage = types.SimpleNamespace(free=int(free * 1e9))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage)
    said = []
    check = lambda: disk.check_space(tmp_path, 10**9, 3, said.append)
    if outcome == "refused":
        with pytest.raises(UserError, match=r"takes 1 GB, and .* has room for 1\.9 GB, less than"):
            check()
    else:
        check()
        assert [s.startswith("warning: ") for s in said] == [True] * (outcome == "warned")


def test_checkpoint_bytes_are_those_of_parameters_and_optimizer_state():
    tree = {"a": jnp.zeros((3, 5)), "b": [jnp.zeros((), jnp.bfloat16)]}
    assert disk.tree_bytes(tree) == 3 * 5 * 4 + 2


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory; choose another"):
        open_run(tmp_path / "file" / "run", {})
