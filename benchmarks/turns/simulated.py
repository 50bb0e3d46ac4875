"""Simulates a server of one chip in time: what waits, what is read again, what is decoded."""

import dataclasses
import heapq
from collections import deque
from collections.abc import Sequence

from benchmarks.turns.costs import Costs
from benchmarks.turns.residency import Residency
from benchmarks.turns.served import Served
from benchmarks.turns.workload import Turn


@dataclasses.dataclass
class _Running:
    """Holds a session whose reply is decoded: tokens of its cache, and tokens still to draw."""

    cached: int
    left: int


class Server:
    """Serves turns in the order in which they arrive.

    It reads one turn at a time, before it goes on decoding; a decode step draws one token for every
    session that was read. The prefix is in memory once, and is never dropped. A turn waits until
    its cache has room beside those of sessions that are being decoded; of the others the least
    recently used are dropped, and read again, without the prefix, at their next turn.
    """

    def __init__(self, costs: Costs, budget: float, prefix: int, sessions: Sequence[list[Turn]]):
        """Takes the bytes for the caches of sessions, and the turns of each."""
        self.costs = costs
        self.prefix = prefix
        self.sessions = sessions
        self.residency = Residency(budget)
        self.now = 0.0
        self.turns: list[Served] = []
        self._rounds = [0] * len(sessions)
        self._history = [0] * len(sessions)
        self._arrivals = [(turns[0].pause_s, number) for number, turns in enumerate(sessions)]
        heapq.heapify(self._arrivals)
        self._waiting: deque[tuple[float, int]] = deque()
        self._running: dict[int, _Running] = {}

    def run(self) -> None:
        """Serves all turns; `turns` then records them, and `now` is when the last one ended."""
        while self._arrivals or self._waiting or self._running:
            while self._arrivals and self._arrivals[0][0] <= self.now:
                self._waiting.append(heapq.heappop(self._arrivals))
            if self._waiting and self._read(*self._waiting[0]):
                self._waiting.popleft()
            elif self._running:
                self._decode()
            else:
                self.now = self._arrivals[0][0]

    def _read(self, arrival: float, session: int) -> bool:
        """Reads a session's turn, and draws its first token, if there is room for it."""
        number, history = self._rounds[session], self._history[session]
        turn = self.sessions[session][number]
        total = history + turn.tokens
        found = self.residency.begin(session, self.costs.size.bytes(total + turn.reply))
        if found is None:
            return False
        cached = self.prefix + (history if found.hit else 0)
        read = self.prefix + total - cached
        self.now += self.costs.prefill_s(cached, read)
        resident = len(self.residency.resident)
        ttft_s = self.now - arrival
        self.turns.append(
            Served(number, found.hit, len(found.evicted), resident, read, ttft_s, turn.reply)
        )
        self._running[session] = _Running(self.prefix + total, turn.reply - 1)
        self._history[session] = total + turn.reply
        self._end_those_that_are_done()
        return True

    def _decode(self) -> None:
        """Draws one token for every running session."""
        cached = sum(one.cached for one in self._running.values())
        self.now += self.costs.decode_s(len(self._running), cached)
        for one in self._running.values():
            one.cached += 1
            one.left -= 1
        self._end_those_that_are_done()

    def _end_those_that_are_done(self) -> None:
        for session in [number for number, one in self._running.items() if one.left <= 0]:
            del self._running[session]
            self.residency.end(session)
            self._rounds[session] += 1
            if self._rounds[session] < len(self.sessions[session]):
                pause_s = self.sessions[session][self._rounds[session]].pause_s
                heapq.heappush(self._arrivals, (self.now + pause_s, session))
