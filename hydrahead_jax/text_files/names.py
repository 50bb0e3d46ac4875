"""Shows paths in messages."""

from pathlib import Path


def shown(path: Path | str, most: int | None = None) -> str:
    """Writes a path or name on one line that any terminal prints.

    Characters that it cannot print are escaped, and what is beyond `most` characters is left out.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
    return text if most is None or len(text) <= most else f"{text[: most - 3]}..."
