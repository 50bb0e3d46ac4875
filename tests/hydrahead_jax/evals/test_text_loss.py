"""Compares the loss on text with numpy, position by position."""

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import text_loss
from hydrahead_jax.models import merge
from tests.hydrahead_jax.evals.toy import CONFIG, HAYSTACK, params
from tests.tolerances import OP

LENGTH, WINDOWS = 150, 5


def losses() -> np.ndarray:
    """Returns the losses [windows, LENGTH - 1] from the logits of the complete sequence."""
    starts = np.linspace(0, len(HAYSTACK) - LENGTH, WINDOWS).astype(int)
    tokens_BT = np.stack([HAYSTACK[s : s + LENGTH] for s in starts])
    model = merge(CONFIG, params())
    logits = np.asarray(model.logits(model(jnp.asarray(tokens_BT)).hidden_BTD), np.float64)[:, :-1]
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    return -np.take_along_axis(log_p, tokens_BT[:, 1:, None], axis=-1)[..., 0]


def test_equals_the_loss_from_all_logits():
    """The windows leave the last batch partly empty, the positions the last part of the logits."""
    found = text_loss(CONFIG, params(), HAYSTACK, length=LENGTH, windows=WINDOWS, batch=3)
    wanted_T = losses().mean(axis=0)
    assert abs(found.mean - wanted_T.mean()) < OP * wanted_T.mean()
    edges = {"0-31": (0, 32), "32-63": (32, 64), "64-127": (64, 128), "128-148": (128, 149)}
    assert list(found.by_position) == list(edges)
    for name, (start, end) in edges.items():
        wanted = wanted_T[start:end].mean()
        assert abs(found.by_position[name] - wanted) < OP * wanted


def test_a_model_that_knows_nothing_loses_log_vocabulary():
    blind = params() | {"w_embed_VD": jnp.zeros_like(params()["w_embed_VD"])}
    found = text_loss(CONFIG, blind, HAYSTACK, length=LENGTH, windows=WINDOWS, batch=3)
    assert abs(found.mean - np.log(CONFIG.vocab)) < 1e-5


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (1, "text windows of 1 tokens predict nothing; give 2 or more"),
        (2001, "the text has 2000 tokens and a window needs 2001; give more text"),
    ],
)
def test_windows_that_cannot_be_are_refused(length, message):
    with pytest.raises(UserError, match=message):
        text_loss(CONFIG, params(), HAYSTACK, length=length)
