"""Validate a mapping against a pydantic model, with errors a user can act on. Imports no torch."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import UnionType
from typing import Annotated, Any, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segue.core.errors import ConfigError, SegueError

T = TypeVar("T", bound=BaseModel)

UNKNOWN_KEY = "unknown key"

#: Constraints of a field, as pydantic keeps them, and how a range is told.
_BOUNDS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "multiple_of": "a multiple of {}",
    "min_length": "no shorter than {}",
    "max_length": "no longer than {}",
    "pattern": "of the form {}",
}
_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "a string",
    "str": "a string",
    "model": "a mapping of keys to values",
    "dict": "a mapping of keys to values",
    "tuple": "a list",
    "list": "a list",
    "set": "a list",
    "none": "nothing",
    "path": "a path",
}


def validate(model: type[T], values: object, place: str) -> T:
    """An instance of ``model`` made of ``values``.

    Args:
        model: a pydantic model; nested models, lists and unions are understood.
        values: what was read from YAML or JSON.
        place: what holds the values (``codec.options``); empty for the root of a config.

    Raises:
        ConfigError: its place is the dotted path of the first wrong value (items of a list by
            their ``name``, else by index); further wrong values are listed after the fix.
        SegueError: raised by a validator of the model, with its place put below ``place``.
    """
    try:
        return model.model_validate(dict(values) if isinstance(values, Mapping) else values)
    except ValidationError as error:
        found = _first_per_path(
            _translate(model, values, details, place) for details in error.errors()
        )
        first, others = found[0], found[1:]
        fix = first[2] + "".join(f" | also {path}: {what}; {how}" for path, what, how in others)
        raise ConfigError(first[0] or "config", first[1], fix) from error
    except SegueError as error:
        raise type(error)(join(place, error.place), error.problem, error.fix) from error


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
    """``did you mean 'depth'?``, or all that is known where nothing comes close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"use one of {', '.join(names)}" if names else "take it out"


def join(place: str, path: str) -> str:
    """``place.path``, whichever of the two may be empty."""
    return f"{place}.{path}" if place and path else place or path


def _first_per_path(found: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One complaint per value, unknown keys first: they often explain what is missing.

    A union complains once for each of its branches, and a list with a wrong item about its length.
    """
    first: dict[str, tuple[str, str, str]] = {}
    for complaint in found:
        first.setdefault(complaint[0], complaint)
    kept = [c for path, c in first.items() if not any(p.startswith(f"{path}.") for p in first)]
    return sorted(kept, key=lambda complaint: complaint[1] != UNKNOWN_KEY)


def _translate(
    model: type[BaseModel], values: object, error: ErrorDetails, place: str
) -> tuple[str, str, str]:
    """Path, problem and fix of one of pydantic's complaints."""
    path, owner, bounds = _walk(model, values, error["loc"])
    last = path[-1] if path else ""
    where = join(place, ".".join(path))
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return where, UNKNOWN_KEY, suggestion(last, owner.model_fields if owner else ())
    if error["loc"] and error["loc"][-1] == "[key]":
        return where, UNKNOWN_KEY, suggestion(last, _quoted(context))
    if kind == "missing":
        return where, "is missing", _describe(owner, last)
    if kind == "literal_error":
        return where, f"{_shown(value)} is not allowed", _literal_fix(value, context)
    if kind == "value_error":
        problem, _, fix = str(context.get("error", error["msg"])).partition("; ")
        return where, problem, fix or "change the value"
    limits = f"it must be {' and '.join(bounds)}" if bounds else ""
    if limits and not kind.endswith(("_type", "_parsing")):
        verdict = "out of range" if isinstance(value, int | float) else "not allowed"
        return where, f"{_shown(value)} is {verdict}", limits
    fix = _expected(kind, error["msg"])
    return where, f"is {_shown(value)}", f"{fix}; {limits}" if limits else fix


def _walk(
    model: type[BaseModel], values: object, loc: Sequence[str | int]
) -> tuple[list[str], type[BaseModel] | None, list[str]]:
    """Follow pydantic's location through the values.

    Returns the path as a user writes it, the model that owns its last key, and the bounds of
    that key's value. Labels that pydantic adds for unions and validators are left out.
    """
    path: list[str] = []
    inner: Any = model
    owner: type[BaseModel] | None = model
    bounds: list[str] = []
    for step in loc:
        if isinstance(values, Mapping):
            owner = _model_in(inner)
            known = owner.model_fields if owner is not None else {}
            if step not in values and step not in known:
                continue
            field = known.get(str(step))
            bounds = _bounds(field.metadata) if field is not None else []
            inner = _value_type(inner) if owner is None else field and field.annotation
            path.append(str(step))
            values = values.get(step)
        elif _is_list(values) and isinstance(step, int) and step < len(values):
            values, inner, bounds = values[step], _value_type(inner), []
            path.append(str(values["name"]) if _is_named(values) else str(step))
    return path, owner, bounds


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_named(item: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(item, Mapping) and isinstance(item.get("name"), str)


def _branches(annotation: Any) -> list[Any]:
    """The types of a union; ``Annotated`` is taken off."""
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [branch for part in get_args(annotation) for branch in _branches(part)]
    return [annotation]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that ``annotation`` is or allows, as ``M | None`` does."""
    for branch in _branches(annotation):
        if isinstance(branch, type) and issubclass(branch, BaseModel):
            return branch
    return None


def _value_type(annotation: Any) -> Any:
    """The type of the items of ``tuple[M, ...]`` or of the values of ``dict[str, M]``."""
    for branch in _branches(annotation):
        arguments = [part for part in get_args(branch) if part is not Ellipsis]
        if arguments:
            return arguments[-1]
    return None


def _bounds(metadata: Iterable[Any]) -> list[str]:
    """``["at least 1", "at most 64"]`` from a field's constraints."""
    told = []
    for item in metadata:
        # pydantic keeps some constraints in an object of their own and others side by side.
        for name, text in _BOUNDS.items():
            limit = getattr(item, name, None)
            if limit is not None:
                told.append(text.format(limit))
    return told


def _describe(owner: type[BaseModel] | None, key: str) -> str:
    field = owner.model_fields.get(key) if owner is not None else None
    if field is None:
        return "add it"
    if _model_in(field.annotation) is not None:
        return f"add it: {_EXPECTED['model']}"
    expected = _EXPECTED.get(getattr(field.annotation, "__name__", ""))
    return f"add it: {expected}" if expected else "add it"


def _quoted(context: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", str(context.get("expected", "")))


def _literal_fix(value: object, context: Mapping[str, Any]) -> str:
    allowed = _quoted(context)
    close = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}use {context.get('expected', 'another value')}"


def _expected(kind: str, message: str) -> str:
    name = kind.partition("_")[0]
    return f"write {_EXPECTED[name]}" if name in _EXPECTED else message[:1].lower() + message[1:]


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole_number(value: object) -> int | None:
    """The value as an int, NumPy's whole numbers included; None if it is none (True is none)."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None


def real_number(value: object) -> float | None:
    """The value as a finite float, NumPy's numbers included; None if it is none (True is none)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value) if math.isfinite(value) else None
