"""Write docs/reference/hooks.md from core/hookspecs.py; `--check` only says whether it is up to date."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from segue.core import hookspecs

TARGET = Path(__file__).parent.parent / "docs" / "reference" / "hooks.md"
HEADER = """# Hooks

Every hook that a plugin can implement, in the words of `core/hookspecs.py`: this page is made by
`python tools/hook_reference.py` and tested against the code. Decorate functions of these names with
`segue.core.hookspecs.hookimpl`; take only the arguments you need.
"""


def reference() -> str:
    """The page as it should be."""
    parts = [HEADER]
    for name, function in sorted(vars(hookspecs).items()):
        if name.startswith("segue_") and inspect.isfunction(function):
            signature = str(inspect.signature(function)).replace("'", "")
            text = inspect.cleandoc(function.__doc__ or "")
            parts.append(f"## `{name}`\n\n```python\n{name}{signature}\n```\n\n{text}\n")
    return "\n".join(parts)


def main() -> int:
    if "--check" in sys.argv:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        return 0 if current == reference() else 1
    TARGET.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
