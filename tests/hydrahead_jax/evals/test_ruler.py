"""Compares documents in RULER's words with texts written by hand, and checks their lengths."""

import sys
import uuid

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import ruler_facts
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.ruler import RULER_TASKS, RulerDocument, RulerTask
from hydrahead_jax.evals.ruler_facts import Fact, FactSource
from hydrahead_jax.evals.ruler_length import fitting_units
from tests.hydrahead_jax.evals.tokenizers import characters, digit_splitting, merging

SEEDS = range(12)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ASKED = Fact("dusty-harbor", "1234567")
NEEDLE = "One of the special magic numbers for dusty-harbor is: 1234567."


def frame(kind: str) -> tuple[str, str]:
    """Returns what stands before and after the haystack."""
    return (
        f"A special magic {kind} is hidden within the following text. Make sure to memorize it. I "
        f"will quiz you about the {kind} afterwards.\n",
        f"\nWhat is the special magic {kind} for dusty-harbor mentioned in the provided text? The "
        f"special magic {kind} for dusty-harbor mentioned in the provided text is",
    )


NUMBER = frame("number")


def haystack(text: str = "Go. ") -> Haystack:
    return Haystack((text * 50,))


def document(task: RulerTask, facts=(ASKED,), seed: int = 0, text="Go. ") -> RulerDocument:
    rng = np.random.default_rng(seed)
    return RulerDocument(task, facts, 0, haystack(text), FactSource(task.value, rng), rng)


def placed(task: str, units: int, facts=(ASKED,), text="Go. ") -> set[str]:
    return {document(RULER_TASKS[task], facts, seed, text).prompt(units) for seed in SEEDS}


def test_a_needle_stands_before_some_line_of_noise():
    contexts = [
        [NEEDLE, NOISE, NOISE, NOISE],
        [NOISE, NEEDLE, NOISE, NOISE],
        [NOISE, NOISE, NEEDLE, NOISE],
    ]
    assert placed("niah_single_1", 3) == {"\n".join(c).join(NUMBER) for c in contexts}


def test_a_needle_stands_between_sentences_and_at_either_end():
    contexts = [f" {NEEDLE} Go. Go.", f"Go. {NEEDLE} Go.", f"Go. Go. {NEEDLE} "]
    found = {document(RULER_TASKS["niah_single_2"], seed=s).prompt(2) for s in range(200)}
    assert found == {context.join(NUMBER) for context in contexts}


def test_a_uuid_is_called_one():
    found = placed("niah_single_3", 1, (Fact("dusty-harbor", "6b-1"),))
    needle = "One of the special magic uuids for dusty-harbor is: 6b-1."
    assert found == {f" {needle} Go.".join(frame("uuid"))}


def test_four_needles_stand_in_order_in_text():
    facts = (ASKED, *(Fact(f"old-key{i}", str(i)) for i in range(3)))
    others = [f"One of the special magic numbers for old-key{i} is: {i}." for i in range(3)]
    needles = [NEEDLE, *others]
    for prompt in placed("niah_multikey_1", 60, facts):
        context = prompt.removeprefix(NUMBER[0]).removesuffix(NUMBER[1])
        places = [context.index(needle) for needle in needles]
        assert places == sorted(places)
        for needle in needles:
            context = context.replace(needle, "")
        assert context.split() == ["Go."] * 60


def test_other_needles_are_the_haystack():
    prompt = document(RULER_TASKS["niah_multikey_2"]).prompt(6)
    assert prompt.startswith(NUMBER[0]) and prompt.endswith(NUMBER[1])
    lines = prompt.removeprefix(NUMBER[0]).removesuffix(NUMBER[1]).split("\n")
    assert len(lines) == 7 and lines.count(NEEDLE) == 1
    keys = set()
    for line in lines:
        start, value = line.removesuffix(".").split(" is: ")
        keys.add(start.removeprefix("One of the special magic numbers for "))
        assert 10**6 <= int(value) < 10**7
    assert len(keys) == 7 and all("-" in key for key in keys)


def test_text_of_any_size_is_one_stretch_from_a_random_word_and_begins_again():
    text, starts = " ".join(f"w{i}" for i in range(200)) + " ", set()
    for seed in range(8):
        prompt = document(RulerTask(haystack="text"), seed=seed, text=text).prompt(9000)
        context = prompt.removeprefix(NUMBER[0]).removesuffix(NUMBER[1])
        numbers = np.array([int(word[1:]) for word in context.replace(NEEDLE, "").split()])
        assert len(numbers) == 9000 and set(np.diff(numbers) % 200) == {1}
        starts.add(int(numbers[0]))
    assert len(starts) > 4


def test_long_text_without_full_stops_is_cut_into_sentences():
    """Sentences have at most 64 words, so a needle has more places than two."""
    make = lambda seed: document(RulerTask(haystack="text"), seed=seed, text="word ").prompt(640)
    places = {make(seed).index(NEEDLE) for seed in range(20)}
    assert len(places) > 5


@pytest.mark.parametrize("kind", ["number", "uuid"])
def test_facts_are_drawn_once_and_a_distractor_differs_wherever_it_may(kind):
    source = FactSource(kind, np.random.default_rng(0))
    facts = [source.fact() for _ in range(200)]
    others = [source.value_unlike(fact.value) for fact in facts]
    assert len({fact.key for fact in facts}) == 200
    assert len({fact.value for fact in facts} | set(others)) == 400
    for fact, other in zip(facts, others, strict=True):
        assert len(other) == len(fact.value)
        if kind == "number":
            assert 10**6 <= int(other) < 10**7 and all(map(str.__ne__, fact.value, other))
        else:
            assert uuid.UUID(other).version == 4 and uuid.UUID(other).variant == uuid.RFC_4122
            alike = [i for i, (a, b) in enumerate(zip(fact.value, other, strict=True)) if a == b]
            assert alike == [8, 13, 14, 18, 23]


@pytest.mark.parametrize("task", RULER_TASKS)
@pytest.mark.parametrize("tokenizer", [merging, digit_splitting, characters])
def test_documents_fill_their_length(task, tokenizer):
    """Documents are as long as complete words or lines allow: one more is too long."""
    size = lambda doc, units: len(tokenizer().encode(doc.prompt(units)).ids)
    documents = [document(RULER_TASKS[task], seed=seed) for seed in range(3)]
    fitted = fitting_units(documents, tokenizer(), length=1500, after_prompt=[10, 20, 30])
    for doc, units, left in zip(documents, fitted, (10, 20, 30), strict=True):
        assert size(doc, units) + left <= 1500 < size(doc, units + 1) + left


def test_too_short_a_length_names_the_smallest_that_works():
    documents = [document(RULER_TASKS["niah_single_1"], seed=seed) for seed in range(4)]
    fit = lambda length: fitting_units(documents, merging(), length=length, after_prompt=[7] * 4)
    with pytest.raises(UserError, match="use at least") as error:
        fit(20)
    smallest = int(str(error.value).rsplit(" ", 1)[1])
    assert min(fit(smallest)) == 1
    with pytest.raises(UserError, match=f"{smallest - 1} tokens are too few"):
        fit(smallest - 1)


def test_a_tokenizer_that_cuts_long_texts_off_ends_the_search():
    tokenizer = type(merging()).from_str(merging().to_str())
    tokenizer.enable_truncation(50)
    assert fitting_units(
        [document(RULER_TASKS["niah_single_1"])], tokenizer, length=60, after_prompt=[7]
    ) == [53]


def test_what_cannot_be_is_a_user_error(monkeypatch):
    with pytest.raises(UserError, match="needles=41 must be 1 to 40 for documents of RULER"):
        RulerTask(haystack="text", needles=41)
    with pytest.raises(UserError, match="the haystack holds text only"):
        haystack().tokens  # noqa: B018
    with pytest.raises(UserError, match="the haystack holds no text"):
        document(RULER_TASKS["niah_single_2"], text=" ")
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    ruler_facts._words.cache_clear()
    with pytest.raises(UserError, match="pip install wonderwords"):
        document(RULER_TASKS["niah_single_1"])
