"""Write docs/reference/hooks.md from core/hookspecs.py; `--check` compares only."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from segue.core import hookspecs

TARGET = Path(__file__).parent.parent / "docs" / "reference" / "hooks.md"
HEADER = """# Hooks

Every hook that a plugin can implement. `python tools/hook_reference.py` makes this page from
`core/hookspecs.py`, and a test compares the two. Decorate functions of these names with
`segue.core.hookspecs.hookimpl`; take only the arguments you need. All hooks but the first are
called in the order of registration, and return nothing.
"""
FOOTER = """## Hooks of version 0.1

One hook for each kind, replaced by `segue_register`; they work for one version more, with a
`DeprecationWarning`:

{}
"""


def reference() -> str:
    """Return the page as it should be."""
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("segue_")}
    old = [f"- `{name}`" for name, hook in hooks.items() if hook.__name__ != name]
    parts = [HEADER]
    for name, function in hooks.items():
        if function.__name__ == name:
            signature = str(inspect.signature(function)).replace("'", "")
            text = inspect.cleandoc(function.__doc__ or "")
            parts.append(f"## `{name}`\n\n```python\n{name}{signature}\n```\n\n{text}\n")
    return "\n".join([*parts, FOOTER.format("\n".join(old))])


def main() -> int:
    if "--check" in sys.argv:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        return 0 if current == reference() else 1
    TARGET.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
