"""Shows the progress of a long command: bars on a terminal, lines elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 30.0


class Stages:
    """Shows stages that follow one another.

    Call it with a stage's name, the parts done and the parts in all. On a terminal every stage is a
    bar with the time that is left. Elsewhere a stage is a line every half minute, and one when it
    is done.
    """

    def __init__(self, say: Callable[[str], None], console: Console | None = None):
        console = console or Console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._say = say
        self._bars = Progress(*columns, console=console) if console.is_terminal else None
        self._tasks: dict[str, int] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "Stages":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, completed=done)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        now = time.monotonic()
        began, already = self._first.setdefault(stage, (now, done))
        if done < total and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = ""
        if already < done < total:
            minutes = (now - began) / (done - already) * (total - done) / 60
            left = f", about {minutes:.0f} min left" if minutes >= 1 else ", under a minute left"
        self._say(f"{stage}: {done} of {total}{left}")
