"""Shows paths in messages."""

from pathlib import Path


def shown(path: Path | str) -> str:
    """Writes a path on one line that any terminal prints; what it cannot print is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
