"""Replays the turns of sessions on a model, with caches under a byte budget."""

import time

import numpy as np

from benchmarks.turns.reader import Reader
from benchmarks.turns.residency import Residency
from benchmarks.turns.script import Question, Script
from benchmarks.turns.served import Served
from hydrahead_jax.cache import Cache


class Replay:
    """Serves one turn at a time: in each round all sessions once, in an order drawn anew.

    Every cache begins with that of the prefix, which is read once and counted in no session's
    bytes. A session whose cache was dropped is read again from there.

    Attributes:
      turns: what was served, in order.
      questions: what each turn asked.
      replies: the tokens that each turn was replied.
      seconds: processor time of all turns, as in `turns`, which other programs do not change.
    """

    def __init__(self, reader: Reader, script: Script, *, chunk: int, budget: float, seed: int = 0):
        """Takes the tokens that are read at once after the prefix, and the bytes of all caches."""
        self.reader = reader
        self.script = script
        self.chunk = chunk
        self.turns: list[Served] = []
        self.questions: list[Question] = []
        self.replies: list[list[int]] = []
        self.seconds = 0.0
        self._rng = np.random.default_rng(seed)
        self._residency = Residency(budget)
        self._prefix = reader.read(reader.empty, script.prefix, chunk)[1]
        self._histories: list[list[int]] = [[] for _ in script.sessions]
        self._caches: dict[int, Cache] = {}

    def run(self) -> None:
        """Serves all turns."""
        for number in range(len(self.script.sessions[0])):
            for session in self._rng.permutation(len(self.script.sessions)).tolist():
                self._serve(session, number)

    def _serve(self, session: int, number: int) -> None:
        question = self.script.sessions[session][number]
        length, history = len(question.answer), self._histories[session]
        history += question.tokens.tolist()
        size = self.reader.size.bytes(len(history) + length - 1)
        found = self._residency.begin(session, size)
        for other in found.evicted:
            del self._caches[other]
        began = time.process_time()
        if found.hit:  # All but the last token of the reply before are in the cache.
            new = history[-len(question.tokens) - 1 :]
            token, cache = self.reader.read(self._caches[session], new)
        else:
            new = history
            token, cache = self.reader.read(self._prefix, new, self.chunk)
        ttft_s = time.process_time() - began
        reply, cache = self.reader.reply(token, cache, length)
        self.seconds += time.process_time() - began
        resident = len(self._residency.resident)
        self.turns.append(
            Served(number, found.hit, len(found.evicted), resident, len(new), ttft_s, length)
        )
        self.questions.append(question)
        self.replies.append(reply)
        history += reply
        self._caches[session] = cache
        self._residency.end(session)
        if session not in self._residency.resident:
            del self._caches[session]

    def right(self, *, again: bool | None = None) -> float:
        """Returns the share of right replies, of all questions or those asked again, or not."""
        right = [
            reply == question.answer
            for question, reply in zip(self.questions, self.replies, strict=True)
            if again is None or question.again == again
        ]
        return sum(right) / len(right)
