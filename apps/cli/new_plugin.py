"""`segue new-plugin`: write a package that passes conformance, to start from. Imports no torch."""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from segue.apps.cli.options import JsonOption
from segue.apps.cli.output import console, print_json
from segue.core.errors import ConfigError, OutputError

#: The package whose components are copied; in a wheel it lies beside `segue.apps`.
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "third_party_plugin"
MODULES = EXAMPLE / "src" / "segue_toy"

#: Kind → file, class and options in the example; the last word of a class's name; its summary.
KINDS = {
    "semantic_tokenizer": (
        "semantic", "LoudnessTokenizer", "LoudnessOptions", "Tokenizer",
        "loudness and zero crossings of each frame",
    ),
    "codec": (
        "codec", "MdctCodec", "MdctOptions", "Codec",
        "the strongest MDCT coefficients of each frame",
    ),
    "stage_lm": (
        "stage_lm", "GruStageLM", "GruOptions", "StageLM", "recurrent network over frames",
    ),
}  # fmt: skip

REGISTER = Template('''"""Name everything that this package offers, as strings. Imports no torch."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register() -> list[PluginRecord]:
    return [
        PluginRecord(
            kind="$kind",
            name="$component",
            target="$module.$file:$class_",
            config="$module.${file}_config:$options",
            summary="$summary",
            api_version=1,
        ),
    ]
''')

TEST = Template('''"""The component keeps its contract."""

from __future__ import annotations

import pytest

from segue.testing import $imports, parametrize_with_checks

pytestmark = pytest.mark.segue_plugins("$name")


@parametrize_with_checks($subjects)
def test_contract(subject: Subject, check: Check) -> None:
    check(subject)
''')
ONE = '[Subject("$kind", "$component")]'
EACH_STAGE = '[Subject("$kind", "$component", {}, stage) for stage in TINY_STAGES.values()]'

README = Template("""# $name

A plugin for Segue: the $words `$component`. It works as it is; put your own in its place.

```console
$$ segue plugins install -e ./$name
$$ segue plugins check $component
$$ pip install pytest && pytest $name
```

- `pyproject.toml` names one module, `$module.register`, in the entry point group `segue.plugins`.
- `src/$module/register.py` says what there is, in strings; `${file}_config.py` holds the options.
- `src/$module/$file.py` implements the contract of `segue.core.interfaces`.
- `tests/` runs Segue's conformance checks.
""")


def command(
    name: Annotated[str, typer.Argument(help="Name of the package, such as my-codec.")],
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(KINDS)}.")] = "codec",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. Default: NAME.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a plugin package that works, to start your own from."""
    if kind not in KINDS:
        raise ConfigError("--kind", f"{kind!r} is unknown", f"use one of {', '.join(KINDS)}")
    folder = output or Path(name)
    component = write_plugin(name, kind, folder)
    if json:
        print_json({"output": str(folder), "kind": kind, "component": component})
        return
    console.print(f"{folder}: a {kind.replace('_', ' ')} named {component}")
    # Without ./ pip takes it for the name of a package on PyPI.
    source = folder if folder.is_absolute() else f"./{folder}"
    console.print(f"next: segue plugins install -e {source}; segue plugins check {component}")


def write_plugin(name: str, kind: str, folder: Path) -> str:
    """Write the package and return the name of its component, or raise ``SegueError``."""
    module = _module(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(str(folder), "exists already", "name a new folder: --output FOLDER")
    from segue.core.files import atomic_directory
    from segue.core.plugins import default_host

    component = f"{module}.v1"
    for record in default_host().records():
        if (record.kind, record.name) == (kind, component):
            problem = f"{component} is a {kind} of {record.source} already"
            raise ConfigError("NAME", problem, "choose another name")
    file, class_, options, role, summary = KINDS[kind]
    stem = "".join(word.title() for word in module.split("_"))
    own = stem if stem.lower().endswith(role.lower()) else f"{stem}{role}"
    names = {"segue_toy": module, class_: own, options: f"{stem}Options"}
    words = {
        "name": name, "module": module, "kind": kind, "component": component, "file": file,
        "class_": own, "options": f"{stem}Options", "summary": summary,
        "words": kind.replace("_", " "),
        "imports": ("TINY_STAGES, " if kind == "stage_lm" else "") + "Check, Subject",
    }  # fmt: skip
    words["subjects"] = Template(EACH_STAGE if kind == "stage_lm" else ONE).substitute(words)
    texts = {
        "pyproject.toml": _project(name, module, kind),
        "README.md": README.substitute(words),
        f"src/{module}/__init__.py": f'"""A {words["words"]} for Segue. Imports nothing."""\n',
        f"src/{module}/register.py": REGISTER.substitute(words),
        f"src/{module}/{file}.py": _renamed(f"{file}.py", names),
        f"src/{module}/{file}_config.py": _renamed(f"{file}_config.py", names),
        "tests/test_contract.py": TEST.substitute(words),
    }
    with atomic_directory(folder) as temporary:
        for path, text in texts.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
    return component


def _module(name: str) -> str:
    module = re.sub(r"[-.]+", "_", name)
    usable = re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", module) and not keyword.iskeyword(module)
    if not usable:
        fix = "use small letters, digits and hyphens, as in my-codec"
        raise ConfigError("NAME", f"{name!r} cannot name a package", fix)
    if find_spec(module) is not None:
        raise ConfigError("NAME", f"there is a package {module!r} already", "choose another name")
    return module


def _project(name: str, module: str, kind: str) -> str:
    text = (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    text = re.sub(r'description = ".*"', f'description = "A {kind} for Segue"', text)
    text = text.replace('toy = "segue_toy.register"', f'{module} = "{module}.register"')
    return text.replace("segue-toy", name)


def _renamed(path: str, names: dict[str, str]) -> str:
    """Return a module of the example with other names in it."""
    text = (MODULES / path).read_text(encoding="utf-8")
    for old, new in names.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text
