"""Prints how the parts of the tree depend on each other: `python -m tests.house`, `make house`."""

import ast
import collections
import statistics

from tests.floors import floor, imported_modules, project_sources
from tests.root import ROOT


def room_of(module: str, modules: set[str]) -> str:
    """Returns the room of a module: the folder that it lies in, or itself if it is a package."""
    is_package = any(other.startswith(f"{module}.") for other in modules)
    return module if is_package else module.rpartition(".")[0] or module


def arrows(sources: dict[str, str]) -> dict[tuple[str, str], int]:
    """Counts the imports from one room to another."""
    modules, found = set(sources), collections.Counter()
    for module, source in sources.items():
        for name in imported_modules(module, source, modules):
            if name in modules:
                pair = room_of(module, modules), room_of(name, modules)
                found[pair] += pair[0] != pair[1]
    return {pair: count for pair, count in found.items() if count}


def circles(pairs: set[tuple[str, str]]) -> list[list[str]]:
    """Returns groups of rooms that import one another in a circle, directly or not.

    Imports between a package and what it holds do not count.
    """
    apart = {(a, b) for a, b in pairs if not (f"{a}.".startswith(f"{b}.") or b.startswith(f"{a}."))}
    below = {room: {b for a, b in apart if a == room} for room in {a for a, _ in apart}}

    def reached(room: str) -> set[str]:
        found, left = set(), [room]
        while left:
            new = below.get(left.pop(), set()) - found
            found |= new
            left += new
        return found

    groups = {room: reached(room) for room in below}
    rings = {
        tuple(sorted(b for b in others if room in groups.get(b, set())))
        for room, others in groups.items()
        if room in others
    }
    return [list(ring) for ring in sorted(rings)]


def function_lengths() -> list[int]:
    """Returns the line counts of all functions and methods of the project and its tests."""
    return [
        node.end_lineno - node.lineno + 1
        for path in _files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]


def _files():
    packages = ("pallas_kernels", "hydrahead_jax", "train", "configs", "benchmarks", "tests")
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def main() -> None:
    sources = project_sources()
    found = arrows(sources)
    modules = set(sources)
    up = [
        (module, name)
        for module, source in sources.items()
        for name in imported_modules(module, source, modules)
        if name in modules and floor(name) > floor(module)
    ]
    rooms = {room_of(module, modules) for module in modules}
    for (room, other), count in sorted(found.items()):
        print(f"{room} -> {other}: {count}")
    lines = {path: len(path.read_text().splitlines()) for path in _files()}
    longest = max(lines, key=lines.get)
    deciles = statistics.quantiles(function_lengths(), n=10)
    print(f"{len(modules)} modules in {len(rooms)} rooms, {len(found)} arrows between rooms")
    print(f"arrows up: {len(up)} {up or ''}")
    print(f"circles: {circles(set(found)) or 0}")
    print(f"longest file: {longest.relative_to(ROOT)}, {lines[longest]} lines")
    print(f"functions: half have at most {deciles[4]:.0f} lines, nine in ten {deciles[8]:.0f}")
    print(f"lines of Python, tests included: {sum(lines.values())}")


if __name__ == "__main__":
    main()
