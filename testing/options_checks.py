"""Check the promises of every component's options model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import cache

from pydantic import ValidationError

from segue.core.options import Options
from segue.testing.check import NotApplicable, require
from segue.testing.subject import Subject

_PROGRAM = """
import importlib, sys
importlib.import_module(sys.argv[1])
sys.exit("torch" in sys.modules and "imports torch")
"""


def _config(subject: Subject) -> Options:
    config = subject.own_options()
    if config is None:
        raise NotApplicable("it has no options")
    return config


def check_unknown_options_are_refused(subject: Subject) -> None:
    """Check that an options model refuses an unknown key."""
    config = _config(subject)
    model = type(config)
    is_model = isinstance(config, Options)
    require(is_model, f"{model.__name__} is not a segue.core.options.Options")
    try:
        model.model_validate(config.model_dump() | {"no_such_option": 1})
    except ValidationError:
        return
    require(False, f"{model.__name__} takes the unknown key 'no_such_option'")


def check_options_are_frozen(subject: Subject) -> None:
    """Check that options cannot be changed, so that a config that validated stays valid."""
    config = _config(subject)
    for name in type(config).model_fields:
        try:
            setattr(config, name, getattr(config, name))
        except ValidationError:
            continue
        require(False, f"{type(config).__name__}.{name} can be assigned")


def check_options_survive_json(subject: Subject) -> None:
    """Check that options written to JSON, as checkpoints store them, are read back the same."""
    config = _config(subject)
    read = type(config).model_validate(config.model_dump(mode="json"))
    require(read == config, f"{config!r} became {read!r}")


def check_options_import_no_torch(subject: Subject) -> None:
    """Check that importing the module of the options model imports no torch."""
    require_no_torch(type(_config(subject)).__module__)


def require_no_torch(module: str) -> None:
    """Require that importing a module, in a process of its own, imports no torch."""
    try:
        importable = importlib.util.find_spec(module) is not None and module != "__main__"
    except (ImportError, ValueError):
        importable = False
    if not importable:
        raise NotApplicable(f"{module} cannot be imported by name")
    problem = _problem_of_importing(module)
    require(not problem, f"importing {module}: {problem}")


@cache  # one process for all components whose options lie in that module
def _problem_of_importing(module: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _PROGRAM, module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["fails"])[-1] if done.returncode else ""
