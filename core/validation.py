"""Validate a mapping against a pydantic model, with errors a user can act on. Imports no torch."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segue.core.errors import ConfigError, SegueError

T = TypeVar("T", bound=BaseModel)

UNKNOWN_KEY = "unknown key"
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of")


def validate(model: type[T], values: object, place: str) -> T:
    """Return an instance of ``model`` made of ``values``.

    Args:
        model: a pydantic model; nested models, lists and unions are understood.
        values: what was read from YAML or JSON.
        place: what holds the values (``codec.options``); empty for the root of a config.

    Raises:
        ConfigError: its place is the dotted path of the first wrong value (items of a list by
            their ``name``, else by index); further wrong values are listed after the fix.
        SegueError: raised by a validator of the model, with its place put below ``place``.
    """
    with below(place):
        try:
            return model.model_validate(dict(values) if isinstance(values, Mapping) else values)
        except ValidationError as error:
            (path, problem, fix), *others = _complaints(model, values, error.errors())
            fix += "".join(f" | also {join(place, at)}: {what}; {how}" for at, what, how in others)
            raise ConfigError(path or ("" if place else "config"), problem, fix) from error


@contextmanager
def below(place: str) -> Iterator[None]:
    """Put the place of a ``SegueError`` of the block below ``place``."""
    try:
        yield
    except SegueError as error:
        raise type(error)(join(place, error.place), error.problem, error.fix) from error


@contextmanager
def refusal() -> Iterator[None]:
    """Inside a pydantic validator: report a ``SegueError`` under the path of the value.

    pydantic knows the path of a ``ValueError`` only; any other exception would lose it.
    """
    try:
        yield
    except SegueError as error:
        raise ValueError(f"{error.problem}; {error.fix}") from error


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'depth'?``, or all known words if none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"use one of {', '.join(names)}" if names else "take it out"


def join(place: str, path: str) -> str:
    """Return ``place.path``; either may be empty."""
    return f"{place}.{path}" if place and path else place or path


def whole_number(value: object) -> int | None:
    """Return the value as an int, 3.0 and NumPy's included; None for others and for True."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # the call finds out
    except TypeError:
        number = real_number(value)
        return None if number is None or not number.is_integer() else int(number)


def real_number(value: object) -> float | None:
    """Return the value as a finite float, NumPy's included; None for others and for True."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _complaints(
    model: type[BaseModel], values: object, errors: Iterable[ErrorDetails]
) -> list[tuple[str, str, str]]:
    """Return path, problem and fix of each wrong value, unknown keys first: they often explain
    what is missing.

    A union complains once for each of its branches, and a list with a wrong item about its length:
    the first complaint about a value counts, and the one about its innermost part.
    """
    first: dict[str, tuple[str, str, str]] = {}
    for error in errors:
        path, known = _walk(model, values, error["loc"])
        first.setdefault(".".join(path), (".".join(path), *_translate(error, path, known)))
    kept = [c for path, c in first.items() if not any(p.startswith(f"{path}.") for p in first)]
    return sorted(kept, key=lambda complaint: complaint[1] != UNKNOWN_KEY)


def _translate(error: ErrorDetails, path: list[str], known: Iterable[str]) -> tuple[str, str]:
    """Return problem and fix of one of pydantic's complaints, largely in pydantic's words."""
    kind, value, context = error["type"], repr(error["input"]), error.get("ctx", {})
    last, allowed = path[-1] if path else "", re.findall(r"'([^']*)'", context.get("expected", ""))
    if kind == "extra_forbidden":
        return UNKNOWN_KEY, suggestion(last, known)
    if error["loc"] and error["loc"][-1] == "[key]" and allowed:
        return UNKNOWN_KEY, suggestion(last, allowed)
    if kind == "missing":
        return "is missing", "add it"
    if kind == "value_error":
        problem, _, fix = str(context.get("error", error["msg"])).partition("; ")
        return problem, fix or "change the value"
    value = value if len(value) <= 60 else f"{value[:57]}..."
    shown = "is empty" if error["input"] is None else f"is {value}"
    shown = f"{value} is out of range" if kind in _BOUNDS else shown
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return shown, "write a mapping of keys to values"
    fix = re.sub("^(Input|Tuple|List) should", "it should", error["msg"].split(" after ")[0])
    close = difflib.get_close_matches(str(error["input"]), allowed, n=1, cutoff=0.6)
    return shown, f"did you mean {close[0]!r}? {fix}" if close else fix


def _walk(
    model: type[BaseModel], values: object, loc: Sequence[str | int]
) -> tuple[list[str], list[str]]:
    """Return a location's path as a user writes it, and the keys known beside its last one.

    The model is followed beside the values, to know the keys of the innermost one.
    """
    path: list[str] = []
    known: list[str] = []
    inner: Any = model
    for step in loc:
        if isinstance(values, Mapping):
            owner = _find_type(inner, BaseModel)
            fields = owner.model_fields if owner else {}
            if step not in values and step not in fields:
                continue  # the name of a union's branch or of a validator
            known = list(fields)
            field = fields.get(str(step))
            inner = (field and field.annotation) if owner else _item_type(inner)
            path.append(str(step))
            values = values.get(step)
        elif isinstance(values, list | tuple) and isinstance(step, int):
            values, inner = next(iter(values[step:]), None), _item_type(inner)
            name = values.get("name") if isinstance(values, Mapping) else None
            path.append(name if isinstance(name, str) else str(step))
    return path, known


def _find_type(annotation: Any, base: type[T]) -> type[T] | None:
    """Return the model that a field takes, as in ``M | None`` or ``Annotated[M, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, base):
        return annotation
    if getattr(annotation, "__origin__", None) in (dict, tuple, list):
        return None
    parts = (_find_type(part, base) for part in get_args(annotation))
    return next((part for part in parts if part), None)


def _item_type(annotation: Any) -> Any:
    """Return the type of the items of ``tuple[M, ...]`` or of the values of ``dict[str, M]``."""
    for part in (annotation, *get_args(annotation)):
        if getattr(part, "__origin__", None) in (dict, tuple, list):
            return [one for one in get_args(part) if one is not Ellipsis][-1]
    return None
