"""Makes needle documents in the words of NVIDIA/RULER (arXiv 2404.06654), of any size.

Templates, needle sentences, haystacks and places of the needles are RULER's. We differ in the real
text: it is the user's, starts at a random word, and its sentences end after . ! or ? or after 64
words.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.ruler_facts import Fact, FactSource, ValueKind

_PROMPT = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the {kind} afterwards.\n{context}\nWhat is the special magic {kind} for {key} "
    "mentioned in the provided text? The special magic {kind} for {key} mentioned in the provided "
    "text is"
)
_NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")
_LONGEST_SENTENCE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulerTask:
    """Says what one of RULER's needle tasks asks for.

    Attributes:
      haystack: lines of noise, real text, or lines that are needles themselves.
      value: what the keys stand for.
      needles: keys that are put into the haystack; one of them is asked for.
    """

    haystack: Literal["noise", "text", "needle"]
    value: ValueKind = "number"
    needles: int = 1

    def __post_init__(self):
        if not 1 <= self.needles <= len(_DEPTHS):
            raise UserError(
                f"needles={self.needles} must be 1 to {len(_DEPTHS)} for documents of RULER"
            )


RULER_TASKS = {
    "niah_single_1": RulerTask(haystack="noise"),
    "niah_single_2": RulerTask(haystack="text"),
    "niah_single_3": RulerTask(haystack="text", value="uuid"),
    "niah_multikey_1": RulerTask(haystack="text", needles=4),
    "niah_multikey_2": RulerTask(haystack="needle"),
}


class RulerDocument:
    """Puts needles into a haystack of any number of units, which are words of text, or lines.

    All random choices are made once, so documents of all sizes, and of other facts, are alike.

    Attributes:
      facts: facts in the order of their needles; no two share a key or a value.
      asked: index of the fact that is asked for.
    """

    def __init__(
        self,
        task: RulerTask,
        facts: Sequence[Fact],
        asked: int,
        haystack: Haystack,
        source: FactSource,
        rng: np.random.Generator,
    ):
        self.task, self.facts, self.asked = task, tuple(facts), asked
        self._source, self._lines = source, []
        if task.haystack == "text":
            self._depths = np.sort(rng.choice(_DEPTHS, len(facts), replace=False)) / 100
            self._words = haystack.words
            self._start = int(rng.integers(len(self._words)))
        else:
            self._depths = np.sort(rng.random(len(facts)))

    def needle(self, fact: Fact) -> str:
        """Returns the sentence that states a fact."""
        return _NEEDLE.format(kind=self.task.value, **fact._asdict())

    def prompt(self, units: int, facts: Sequence[Fact] | None = None) -> str:
        """Returns the document up to the word before the answer.

        `facts` replace the document's own in their places. The key asked for stays the document's
        own.
        """
        needles = [self.needle(fact) for fact in facts or self.facts]
        if self.task.haystack == "text":
            units_of_text = _sentences(self._stretch(units))
            context = " ".join(_between(units_of_text, needles, self._depths))
        else:
            context = "\n".join(_inserted(self._take(units), needles, self._depths))
        key = self.facts[self.asked].key
        return _PROMPT.format(kind=self.task.value, context=context, key=key)

    def _stretch(self, units: int) -> list[str]:
        """Returns words from the start on, from the beginning again where the text ends."""
        places = np.arange(self._start, self._start + units) % len(self._words)
        return [self._words[place] for place in places]

    def _take(self, units: int) -> list[str]:
        if self.task.haystack == "noise":
            return [_NOISE] * units
        while len(self._lines) < units:
            self._lines.append(self.needle(self._source.fact()))
        return self._lines[:units]


def _sentences(words: Sequence[str]) -> list[str]:
    sentences, sentence = [], []
    for word in words:
        sentence.append(word)
        if _SENTENCE_END.search(word) or len(sentence) == _LONGEST_SENTENCE:
            sentences.append(" ".join(sentence))
            sentence = []
    return [*sentences, " ".join(sentence)] if sentence else sentences


def _between(sentences: Sequence[str], needles: Sequence[str], depths) -> Iterator[str]:
    """Yields stretches of sentences, a needle after each; an empty stretch is a string too."""
    done = 0
    for needle, depth in zip(needles, depths, strict=True):
        place = int(len(sentences) * depth)
        yield " ".join(sentences[done:place])
        yield needle
        done = place
    yield " ".join(sentences[done:])


def _inserted(lines: Sequence[str], needles: Sequence[str], depths) -> list[str]:
    """Returns the lines with each needle before one of them."""
    places = [int(len(lines) * depth) for depth in depths]
    lines = list(lines)
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        lines.insert(place, needle)
    return lines
