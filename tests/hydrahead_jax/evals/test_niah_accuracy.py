"""Accuracy is the share of answers that are generated exactly."""

import importlib
import re

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import Haystack, needle_questions, niah_accuracy
from hydrahead_jax.evals.niah import needle_symbols
from hydrahead_jax.evals.ruler import RULER_TASKS
from tests.hydrahead_jax.evals.tokenizers import digit_splitting
from tests.hydrahead_jax.evals.toy import CONFIG, HAYSTACK, params, tokenizer

MODULE = importlib.import_module("hydrahead_jax.evals.niah_accuracy")


def look_up(prompt: list[int]) -> list[int]:
    """Returns the answer from the needle: the tokens after the first place of the last key."""
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
    settings = dict(length=96, needles=8, documents=12, seed=0) | settings
    questions = needle_questions(tokenizer(), HAYSTACK, **settings)
    return niah_accuracy(CONFIG, {}, questions, batch=4)


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
    """The last of the batches of 4 repeats two of 10 documents; a repeat's reply does not count."""
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
    """The model really generates here, from prompts that take two chunks."""
    questions = needle_questions(tokenizer(), HAYSTACK, length=256, documents=3)
    assert niah_accuracy(CONFIG, params(), questions, batch=3, prefill_chunk=128) == 0.0


@pytest.fixture
def reader(monkeypatch):
    """Replaces the model by one that reads RULER's documents; it records the prompts it saw."""
    seen = []

    def generate(config, params, batch, *, max_new_tokens, **settings):
        prompts = [digit_splitting().decode(prompt) for prompt in batch]
        seen.extend(zip(prompts, map(len, batch), [settings] * len(prompts), strict=True))
        keys = [re.search(r" for (\S+) mentioned in the provided text is$", p)[1] for p in prompts]
        values = [
            re.search(rf"for {key} is: (\S+)\.", prompt)[1]
            for key, prompt in zip(keys, prompts, strict=True)
        ]
        replies = [f" surely {value.upper()}, yes" for value in values]
        return [digit_splitting().encode(reply).ids[:max_new_tokens] for reply in replies]

    monkeypatch.setattr(MODULE, "generate", generate)
    return seen


def ask(edits=None, **settings) -> float:
    settings = dict(length=900, documents=5, seed=0) | settings
    prose = Haystack(("Time went by. Was it late? No! " * 30,))
    questions = needle_questions(digit_splitting(), prose, **settings)
    return niah_accuracy(CONFIG, {}, questions, batch=2, edits=edits)


@pytest.mark.parametrize("name", RULER_TASKS)
def test_a_reply_to_ruler_is_right_where_the_value_occurs_in_it(reader, name):
    assert ask(task=RULER_TASKS[name]) == 1.0
    assert ask(task=RULER_TASKS[name], reply=6) == 0.0
    prompts, lengths, _ = zip(*reader[:5], strict=True)
    assert len(set(prompts)) == 5
    assert all(900 - 128 - 80 < length <= 900 - 128 for length in lengths)
    assert all(900 - 6 - 80 < length <= 900 - 6 for _, length, _ in reader[6:11])


def test_a_tokenizer_without_symbols_is_asked_in_the_words_of_ruler(reader):
    assert ask(needles=3) == 1.0
    needles = [prompt.count("One of the special magic numbers") for prompt, _, _ in reader]
    assert needles == [3] * 6
    with pytest.raises(UserError, match="no <key_00>"):
        ask(template="symbols")


def test_edits_reach_the_model(reader):
    ask(edits={})
    assert [settings["edits"] for _, _, settings in reader] == [{}] * 6
