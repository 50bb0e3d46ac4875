"""Provides real text that every machine has: the Python standard library's own sources."""

import hashlib
import sysconfig
from pathlib import Path
from typing import Literal

Split = Literal["train", "held_out"]


def stdlib_documents(split: Split) -> list[str]:
    """Returns the modules of the standard library, one document each, in a fixed order.

    A tenth of the files, chosen by a hash of the name, is held out: it is never trained on.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for d in (root, *_packages(root)) for p in d.glob("*.py"))
    chosen = [p for p in files if _is_held_out(p.relative_to(root)) == (split == "held_out")]
    texts = (p.read_text(encoding="utf-8", errors="ignore") for p in chosen)
    return [text for text in texts if len(text) > 500]


def _packages(root: Path) -> list[Path]:
    names = ("asyncio", "collections", "concurrent/futures", "email", "http", "importlib", "json")
    more = ("logging", "multiprocessing", "unittest", "urllib", "xml/dom", "xml/sax", "html")
    return [root / name for name in names + more]


def _is_held_out(name: Path) -> bool:
    return hashlib.sha256(name.as_posix().encode()).digest()[0] < 26
