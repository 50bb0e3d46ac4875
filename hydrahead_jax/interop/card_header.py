"""Writes the header of a model card: the teacher's license and name."""

import re
from pathlib import Path

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def card_header(teacher: Path | None) -> str:
    """Returns lines of YAML: the license as the teacher's own card has it, and base_model.

    The teacher's card names its own base, not itself. The name is therefore that of the Hub where
    config.json or a folder of the Hub's cache has it, and the folder's otherwise. What is not known
    is left out.
    """
    if teacher is None:
        return ""
    name = _name(teacher)
    lines = [*_license(teacher), *([f"base_model: {name}"] if name else [])]
    return "".join(f"{line}\n" for line in lines)


def _license(teacher: Path) -> list[str]:
    """Returns the lines of license, license_name and license_link, unchanged."""
    try:
        text = (teacher / "README.md").read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return []
    first, *rest = text.splitlines() or [""]
    if first.rstrip() != "---" or "---" not in (ends := [line.rstrip() for line in rest]):
        return []
    lines, keep = [], False
    for line in rest[: ends.index("---")]:
        if not line.startswith((" ", "-", "#")):
            keep = re.match(r"license(_name|_link)?:", line) is not None
        if keep:
            lines.append(line.rstrip())
    return lines


def _name(teacher: Path) -> str | None:
    try:
        recorded = read_json(teacher / "config.json").get("_name_or_path")
    except (UserError, AttributeError):
        recorded = None
    cached = [f"{m[1]}/{m[2]}" for part in teacher.parts if (m := _HUB_CACHE.fullmatch(part))]
    on_hub = isinstance(recorded, str) and "/" in recorded and not Path(recorded).exists()
    name = recorded if on_hub and _NAME.fullmatch(recorded) else [teacher.name, *cached][-1]
    return name if _NAME.fullmatch(name) else None
