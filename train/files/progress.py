"""Shows the progress of a long command: bars on a terminal, lines elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from train import distributed

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows parts of a command that run side by side or one after the other.

    Call it with a part's name, what is done, what there is in all, and a note such as the loss.
    On a terminal each part is a bar with the time that is left. Elsewhere a part is a line every
    half minute, and one when it is done. Of several processes only the first one shows anything.
    """

    def __init__(self, say: Callable[[str], None], console: Console | None = None):
        console = console or Console()
        self._is_shown = distributed.is_first()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._say = say
        has_bars = console.is_terminal and self._is_shown
        self._bars = Bars(*columns, console=console) if has_bars else None
        self._tasks: dict[str, int] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._last_line: dict[str, float] = {}
        self._notes: dict[str, str] = {}
        self._finished: set[str] = set()

    def __enter__(self) -> "Progress":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, part: str, done: int, total: int, note: str | None = None) -> None:
        """Shows how far a part is; without a note its last one stays."""
        if not self._is_shown:
            return
        self._notes[part] = note = self._notes.get(part, "") if note is None else note
        if self._bars is not None:
            if part not in self._tasks:
                self._tasks[part] = self._bars.add_task(part, completed=done, note=note)
            self._bars.update(self._tasks[part], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        began, already = self._first.setdefault(part, (now, done))
        last = self._last_line.setdefault(part, now)
        is_done = done >= total
        if part in self._finished or (not is_done and now - last < _SECONDS_BETWEEN_LINES):
            return
        if is_done:
            self._finished.add(part)
        self._last_line[part] = now
        left = ""
        if already < done < total:
            minutes = (now - began) / (done - already) * (total - done) / 60
            left = f"about {minutes:.0f} min left" if minutes >= 1 else "under a minute left"
        said = [f"{done} of {total}", note, left]
        self._say(f"{part}: {', '.join(text for text in said if text)}")
