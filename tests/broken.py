"""Break sound components in one place each, to show that a check notices."""

from __future__ import annotations

import re
from functools import partial
from types import FunctionType
from typing import Any

from segue.testing import Check, Subject, run_check


def broken(sound: type[Any], **changes: Any) -> type[Any]:
    """Return a subclass with other attributes.

    Args:
        sound: the component that is right.
        changes: by name, a value; or a function in place of a method, which is called with the
            sound method, the component and the arguments.
    """

    def changed(name: str, change: Any) -> Any:
        if not isinstance(change, FunctionType):
            return change
        return lambda self, *args: change(partial(getattr(sound, name), self), self, *args)

    members = {name: changed(name, change) for name, change in changes.items()}
    members["__module__"] = sound.__module__  # whose clocks a check moves on
    return type(sound)(f"Broken{sound.__name__}", (sound,), members)


def after(effect: Any) -> Any:
    """Return a method that does something first and then what the sound one does."""

    def method(right: Any, self: Any, *args: Any) -> Any:
        effect(self, *args)
        return right(*args)

    return method


def assert_caught(check: Check, subject: Subject, problem: str) -> None:
    """Assert that a check refuses a subject for a reason that matches ``problem``."""
    result = run_check(check, subject)
    assert result.outcome == "failed"
    assert re.search(problem, result.message), result.message
