"""Decides whose caches stay in memory: those of the sequences used last, under a byte budget."""

from typing import NamedTuple


class Admission(NamedTuple):
    """Says what a sequence finds when its turn begins.

    Attributes:
      hit: its cache is still there.
      evicted: sequences whose caches were dropped for it, the least recently used first.
    """

    hit: bool
    evicted: tuple[int, ...]


class Residency:
    """Tracks the caches of sequences; the least recently used are dropped first.

    A sequence is dropped as a whole, and never during its own turn. A sequence that exceeds the
    budget runs alone, and its cache is dropped when its turn ends.
    """

    def __init__(self, budget: float):
        """Takes the bytes that all caches together may have."""
        self.budget = budget
        self._sizes: dict[int, int] = {}
        self._running: set[int] = set()

    @property
    def used(self) -> int:
        """Returns the bytes of all caches."""
        return sum(self._sizes.values())

    @property
    def resident(self) -> tuple[int, ...]:
        """Returns the sequences that have a cache, the least recently used first."""
        return tuple(self._sizes)

    def begin(self, sequence: int, size: int) -> Admission | None:
        """Makes room for a sequence whose cache has `size` bytes when its turn ends.

        Returns:
          None, with nothing changed, while running sequences leave too little room.
        """
        running = sum(self._sizes[other] for other in self._running)
        if self._running and running + size > self.budget:
            return None
        hit = self._sizes.pop(sequence, None) is not None
        evicted = []
        for other in self.resident:
            if self.used + size <= self.budget:
                break
            if other not in self._running:
                del self._sizes[other]
                evicted.append(other)
        self._sizes[sequence] = size
        self._running.add(sequence)
        return Admission(hit, tuple(evicted))

    def end(self, sequence: int) -> None:
        """Ends a turn: from now on the sequence may be dropped, and was used last."""
        self._running.remove(sequence)
        size = self._sizes.pop(sequence)
        if size <= self.budget:
            self._sizes[sequence] = size
