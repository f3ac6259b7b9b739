"""Import what a record names, check it against its contract, build it.

Imports no torch itself; the implementations that it imports do.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from segue.core.errors import PluginError, SegueError
from segue.core.options import Options
from segue.core.records import PluginRecord
from segue.core.registry import FIRST_PARTY


def import_target(target: str) -> Any:
    """The module ``"package.module"`` or the object ``"package.module:attribute"``."""
    module, _, attribute = target.partition(":")
    found: Any = import_module(module)
    for name in filter(None, attribute.split(".")):
        found = getattr(found, name)
    return found


def options_model(record: PluginRecord, place: str) -> type[Options]:
    """The options model of a component, imported without its implementation.

    Raises:
        PluginError: if it cannot be imported or is no ``segue.core.options.Options``.
    """
    if not record.config:
        return Options
    model = _import(record, record.config, place)
    if not (isinstance(model, type) and issubclass(model, Options)):
        raise PluginError(
            place,
            f"the options model {record.config} of {told(record)} is no subclass of "
            "segue.core.options.Options",
            f"mend {record.source}",
        )
    return model


def load_target(record: PluginRecord, place: str) -> Any:
    """The implementation of a component, checked against the contract of its kind.

    Raises:
        PluginError: if it cannot be imported, lacks an extra or breaks its contract.
    """
    target = _import(record, record.target, place)
    if record.kind == "domain":
        from segue.core.domain import Domain

        _require(isinstance(target, Domain), record, place, "is no segue.core.domain.Domain")
    else:
        _check_class(record, target, place)
    return target


def build(
    record: PluginRecord, target: Any, options: Options, arguments: Sequence[object], place: str
) -> Any:
    """Call the implementation with its options and what its kind gets besides.

    A metric without an options model is called without options.

    Raises:
        PluginError: if it does not take these arguments or fails.
    """
    if record.config or record.kind not in ("metric", "continuation_metric"):
        arguments = (options, *arguments)
    try:
        inspect.signature(target).bind(*arguments)
    except TypeError as error:
        given = ", ".join(type(item).__name__ for item in arguments)
        _require(False, record, place, f"cannot be called with ({given}): {error}")
    try:
        return target(*arguments)
    except SegueError:
        raise
    except Exception as error:
        raise PluginError(
            place,
            f"{told(record)} could not be built: {described(error)}",
            f"check the options, or report it to {record.source}",
        ) from error


def told(record: PluginRecord) -> str:
    """A record as messages name it."""
    return f"{record.kind}/{record.name} of {record.source}"


def described(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _import(record: PluginRecord, target: str, place: str) -> Any:
    try:
        return import_target(target)
    except ImportError as error:
        problem, fix = _import_failure(record, target, error)
        raise PluginError(place, problem, fix) from error
    except (Exception, SystemExit) as error:
        raise PluginError(
            place,
            f"{told(record)} cannot be imported from {target}: {described(error)}",
            f"report it to {record.source}",
        ) from error


def _import_failure(record: PluginRecord, target: str, error: ImportError) -> tuple[str, str]:
    """Tell a wrong target from a dependency that is not installed."""
    module = target.partition(":")[0]
    missing = error.name or ""
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{missing}."):
        return (
            f"{told(record)} names {target}, but there is no module {missing!r}",
            "check the target; modules are looked up on Python's path (sys.path), not beside the "
            "registry file: install the package or set PYTHONPATH",
        )
    if record.extra:
        # What a distribution or Segue offers is installed as its extra; a local file has none.
        owner = FIRST_PARTY if "/" in record.source or "\\" in record.source else record.source
        return (
            f"{told(record)} needs the extra {record.extra!r}: {described(error)}",
            f"pip install '{owner}[{record.extra}]'",
        )
    return (
        f"{told(record)} cannot be imported: {described(error)}",
        f"install what is missing, or {record.source} anew",
    )


def _check_class(record: PluginRecord, target: Any, place: str) -> None:
    """The class has its kind's base and implements all that the base asks for."""
    from segue.core import interfaces
    from segue.core.metrics import ContinuationMetric

    base = {
        "semantic_tokenizer": interfaces.SemanticTokenizer,
        "codec": interfaces.AcousticCodec,
        "stage_lm": interfaces.StageLM,
        "metric": interfaces.Metric,
        "continuation_metric": ContinuationMetric,
        "detector": interfaces.Detector,
    }[record.kind]
    is_one = isinstance(target, type) and issubclass(target, base)
    _require(is_one, record, place, f"is no subclass of {base.__module__}.{base.__name__}")
    missing = ", ".join(sorted(getattr(target, "__abstractmethods__", ())))
    _require(not missing, record, place, f"does not implement {missing}")
    for name in sorted(getattr(base, "__abstractmethods__", ())):
        promised = list(inspect.signature(getattr(base, name)).parameters)
        try:
            inspect.signature(getattr(target, name)).bind(*promised)
        except TypeError as error:
            call = f"{name}({', '.join(promised)})"
            _require(False, record, place, f"breaks the contract's signature {call}: {error}")


def _require(holds: bool, record: PluginRecord, place: str, problem: str) -> None:
    if not holds:
        raise PluginError(
            place, f"{record.target}, {told(record)}, {problem}", f"mend {record.source}"
        )
