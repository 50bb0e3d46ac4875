"""Provides for the client tests a tiny hybrid with each kind of layer, batches, and refusals."""

import dataclasses

import numpy as np
import pytest

from hydrahead_jax.config import FullAttention, NativeHybrid
from tests.hydrahead_jax.interop import toy, with_torch
from tests.hydrahead_jax.interop.with_torch import torch, transformers

MIXED, DELTA = toy.hybrid((0, 3), ()).mixers
SLOTS, GLOBAL = NativeHybrid(window=6, slots=5), NativeHybrid(window=None, slots=3)
CONFIG = dataclasses.replace(toy.TEACHER, mixers=(MIXED, FullAttention(), DELTA, SLOTS, GLOBAL))
ATOL = 1e-4
"""The bound of the export's own check, in logits that span 9; faults show from 1e-2 on."""

PADDING = 13
"""Padding tokens on the left of the second row of `padded_batch`."""

REFUSALS = (ValueError, TypeError, NotImplementedError)


def load(folder, **options):
    model = with_torch.load(folder, **options)
    # No stop token: a sequence that stops early would compare fewer tokens.
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model


def tokens(batch: int, length: int, seed: int = 0):
    """Draws tokens other than 0, which `generate` takes for padding where there is no mask."""
    drawn = toy.random_tokens(CONFIG, batch, length, seed)
    return torch.tensor(1 + drawn % (CONFIG.vocab - 1), dtype=torch.long)


def padded_batch(length: int = 80) -> dict:
    """Returns two rows, longer than a chunk of the delta rule; the second begins with padding."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, :PADDING] = 0
    return {"input_ids": tokens(2, length), "attention_mask": mask}


def logits(model, input_ids, **inputs):
    with torch.inference_mode():
        return model(input_ids=input_ids, **inputs).logits


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


def new_tokens(model, batch: dict, count: int, **options) -> list:
    out = model.generate(**batch, max_new_tokens=count, **options)
    return out[:, batch["input_ids"].shape[1] :].tolist()


def assert_refused(call, match: str):
    """Checks that the call raises one or two sentences that say what is not supported."""
    with pytest.raises(REFUSALS, match=match) as caught:
        call()
    message = str(caught.value)
    assert len(message) < 300
    assert "\n" not in message


def is_newer_than(version: str) -> bool:
    installed = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return np.greater_equal(installed, tuple(int(part) for part in version.split("."))).all()
