"""Checks schedules, and which weights Muon takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers

from hydrahead_jax.models import abstract_params
from tests.train import small
from train.files.param_paths import flatten, split, unflatten
from train.stage.optimizer import AdamW, Muon, _matrix_axes, learning_rate, make_optimizer


def test_cosine_schedule():
    rate = learning_rate(AdamW(learning_rate=1e-3, end_fraction=0.01, warmup_steps=50), 250)
    values = [float(rate(step)) for step in (0, 25, 50, 150, 250)]
    np.testing.assert_allclose(values, [0, 5e-4, 1e-3, 5.05e-4, 1e-5], rtol=1e-5)


def test_constant_schedule_and_warmup_longer_than_the_stage():
    rate = learning_rate(AdamW(learning_rate=1e-5, schedule="constant", warmup_steps=10), 5)
    np.testing.assert_allclose([float(rate(s)) for s in (5, 10, 99)], [5e-6, 1e-5, 1e-5], rtol=1e-5)


def test_muon_takes_projections():
    taken = {path: _matrix_axes(path) for path in flatten(abstract_params(small.STUDENT))}
    mixer = "layers/1/mixer/"
    assert taken[mixer + "gdn/qkv/w_q_DNH"] == MuonDimensionNumbers((0,), (1, 2))
    assert taken[mixer + "fa/w_o_NHD"] == MuonDimensionNumbers((0, 1), (2,))
    assert taken["layers/0/mlp/w_down_FD"] == MuonDimensionNumbers((0,), (1,))
    for path in ("w_embed_VD", mixer + "gdn/conv_q_WNH", mixer + "gdn/a_log_N", "final_norm_D"):
        assert taken[path] is None


@pytest.mark.parametrize("optim", [Muon(warmup_steps=0), AdamW(learning_rate=0.1, warmup_steps=0)])
def test_first_update(optim):
    """Muon's is orthogonal over both head axes together; Adam's has about the size of its rate."""
    params = {"x/w_o_NHD": jnp.zeros((2, 3, 4)), "w_embed_VD": jnp.zeros((3, 2))}
    grads = {
        p: jax.random.normal(jax.random.key(i), v.shape) for i, (p, v) in enumerate(params.items())
    }
    optimizer = make_optimizer(optim, 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    rate = optim.adam_learning_rate if isinstance(optim, Muon) else optim.learning_rate
    against = -updates["w_embed_VD"] * np.sign(grads["w_embed_VD"]) / rate
    assert (against > 0.999).all() and (against < 1.5).all()
    if isinstance(optim, Muon):
        singular = np.linalg.svd(np.reshape(updates["x/w_o_NHD"], (6, 4)), compute_uv=False)
        assert (singular > 0.5 * optim.learning_rate).all()
        assert (singular < 1.5 * optim.learning_rate).all()


def test_paths():
    params = abstract_params(small.STUDENT)
    flat = flatten(params)
    assert unflatten(flat) == params
    chosen, others = split(flat, r"layers/\d+/mixer/.*")
    assert chosen | others == flat and "w_embed_VD" in others
    assert "layers/0/mixer/gdn/a_log_N" in chosen
