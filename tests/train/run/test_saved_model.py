"""Checks how finished runs are loaded."""

import dataclasses

import jax.numpy as jnp
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.models import abstract_params
from tests.train import small
from train.files.param_paths import flatten
from train.files.run_folder import CHECKPOINTS, FINISHED, save_model, write_json
from train.run import saved_model

PARAMS = {
    name: jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)
    for name, leaf in flatten(abstract_params(small.STUDENT)).items()
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes a finished run whose checkpoint holds what is put into the dict."""
    kept = dict(PARAMS)

    @dataclasses.dataclass
    class Store:
        folder: object

        def flaw(self, step):
            assert (self.folder, step) == (tmp_path / CHECKPOINTS, 7)

        def restore_params(self, step, abstract):
            assert set(abstract) == set(kept)
            return kept

        def close(self):
            pass

    monkeypatch.setattr(saved_model, "CheckpointStore", Store)
    save_model(tmp_path, small.STUDENT)
    write_json(tmp_path / FINISHED, {"steps": 7})
    return tmp_path, kept


def test_a_run_is_read(run):
    folder, _ = run
    config, params = saved_model.load_run(folder)
    assert config == small.STUDENT
    assert all((flatten(params)[name] == leaf).all() for name, leaf in PARAMS.items())


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_run_with_numbers_that_are_not_finite_is_refused(run, value):
    folder, kept = run
    name = "layers/1/mixer/gdn/w_o_NHD"
    kept[name] = kept[name].at[0, 0, 0].set(value)
    with pytest.raises(UserError) as caught:
        saved_model.load_saved(folder)
    assert str(caught.value) == (
        f"the last checkpoint in {folder} holds numbers in {name} that are not finite; train again "
        "from an earlier one"
    )
