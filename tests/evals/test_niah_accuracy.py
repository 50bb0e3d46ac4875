"""Accuracy is the share of answers that are generated exactly."""

import importlib

import numpy as np
import pytest

from hydrahead_jax.evals import niah_accuracy
from hydrahead_jax.evals.niah import needle_symbols
from tests.evals.toy import CONFIG, HAYSTACK, params, tokenizer

MODULE = importlib.import_module("hydrahead_jax.evals.niah_accuracy")


def look_up(prompt: list[int]) -> list[int]:
    """The answer, read from the needle: what stands after the first place of the last key."""
    start = prompt.index(prompt[-1])
    return prompt[start + 1 : start + 3]


@pytest.fixture
def prompts(monkeypatch):
    """Replaces the model by one that looks answers up, but errs on every `wrong`-th prompt."""
    seen = []

    def install(wrong: int | None = None, half: bool = False):
        def generate(config, params, batch, *, max_new_tokens, **settings):
            assert max_new_tokens == 2 and settings["beyond_trained_length"]
            replies = [look_up(prompt) for prompt in batch]
            for prompt, reply in zip(batch, replies, strict=True):
                if wrong and len(seen) % wrong == 0:
                    reply[1:] = [0] if half else reply[:0:-1]
                seen.append(prompt)
            return replies

        monkeypatch.setattr(MODULE, "generate", generate)
        return seen

    return install


def measure(**settings) -> float:
    settings = dict(length=96, needles=8, documents=12, batch=4, seed=0) | settings
    return niah_accuracy(CONFIG, {}, tokenizer(), HAYSTACK, **settings)


@pytest.mark.parametrize("needles", [1, 8])
def test_a_model_that_looks_the_answer_up_gets_everything(prompts, needles):
    seen = prompts()
    assert measure(needles=needles) == 1.0
    keys = needle_symbols(tokenizer()).keys
    assert len(seen) == 12 and len({tuple(prompt) for prompt in seen}) == 12
    for prompt in seen:
        assert len(prompt) == 96 - 2 and prompt[-1] in keys
        assert np.isin(prompt, keys).sum() == needles + 1


def test_one_wrong_token_is_a_wrong_answer(prompts):
    prompts(wrong=3, half=True)
    assert measure() == 8 / 12


def test_documents_that_fill_no_whole_batch_are_counted_once(prompts):
    """10 in batches of 4: the last batch repeats two, and the wrong reply to one counts nothing."""
    prompts(wrong=11, half=True)
    assert measure(documents=10) == 9 / 10


def test_the_seed_determines_the_documents(prompts):
    seen = prompts()
    for seed in (1, 1, 2):
        measure(seed=seed)
    first, again, other = np.array(seen).reshape(3, 12, -1)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_an_untrained_model_gets_nothing_at_four_times_its_length():
    """Through generation proper: 96 tokens a prompt, in two chunks."""
    settings = dict(length=256, needles=1, documents=3, batch=3, prefill_chunk=128)
    assert niah_accuracy(CONFIG, params(), tokenizer(), HAYSTACK, **settings) == 0.0
