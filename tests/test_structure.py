"""The rooms of the code and the imports allowed between them: the one place that lists both."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = (
    "core", "sound", "inference", "data", "training", "evaluation", "findings", "testing",
    "plugins", "apps",
)  # fmt: skip

#: Each room may import these rooms and itself. A nested folder's own line wins over its parent's.
ALLOWED = {
    "core": set(),
    "sound": {"core"},
    "inference": {"core", "sound"},
    "data": {"core", "sound", "inference"},
    "training": {"core", "inference", "data"},
    "evaluation": {"core", "sound", "inference", "data"},
    "findings": {"core", "inference", "data", "training", "evaluation"},
    "testing": {"core", "inference"},
    "plugins": {"core", "plugins.layers"},
    "plugins.layers": {"core"},
    "plugins.provenance": {"core", "sound"},
    "plugins.domains": {"core", "data.recipe", "findings.suite"},
    "apps": {*ROOMS},
}


def modules() -> dict[str, Path]:
    """Return every first-party module by its import name without the leading ``segue.``."""
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path, names: set[str]) -> Iterator[str]:
    """Yield the first-party modules that a file imports anywhere but for type checkers only."""
    tree = parsed(path)
    unused = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in unused:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segue."):
            module = (node.module or "").removeprefix("segue.")
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in names else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("segue."):
                    yield alias.name.removeprefix("segue.")


@cache
def parsed(path: Path) -> ast.Module:
    """Parse a file, once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def graph() -> dict[str, set[str]]:
    """Return the first-party modules that each first-party module imports."""
    found = modules()
    return {name: set(imported(path, set(found))) for name, path in found.items()}


def within(name: str, room: str) -> bool:
    """Return whether a module is a room or lies in it."""
    return f"{name}.".startswith(f"{room}.")


def room_of(name: str) -> str:
    """Return the innermost room with a line in ``ALLOWED`` that holds a module."""
    return max((room for room in ALLOWED if within(name, room)), key=len)


def test_imports_follow_the_allowed_arrows() -> None:
    wrong = []
    for name, targets in graph().items():
        room = room_of(name)
        # A plugin may import from its own folder, such as plugins.tokenizers.
        own = ".".join(name.split(".")[:2]) if room == "plugins" else room
        allowed = {*ALLOWED[room], own}
        wrong += [
            f"{name} imports {target}"
            for target in sorted(targets)
            if not any(within(target, other) for other in allowed)
        ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    links, done, circles = graph(), set(), []

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circles.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for target in sorted(links.get(name, ())):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(links):
        visit(name, ())
    assert circles == []


def test_docstrings_open_with_a_sentence() -> None:
    """No "Of one part." or "What is no tensor.": they open with a verb or name a thing."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wrong = [
        f"{path.relative_to(ROOT)}: {found.splitlines()[0]}"
        for path in modules().values()
        for node in ast.walk(parsed(path))
        if isinstance(node, kinds) and (found := ast.get_docstring(node))
        if found.split()[0] in ("What", "Of", "Those", "Which", "Whether")
    ]
    assert wrong == []
