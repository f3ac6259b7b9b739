"""The documentation says what is there: hooks, commands, options, keys, files."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer.main
import yaml
from pydantic import BaseModel

from segue.apps.cli.main import app
from segue.core import hookspecs
from segue.core.config import ComponentConfig, PipelineConfig, StageConfig, TrainingConfig
from segue.core.config_files import load_config
from segue.core.options import Sampling
from segue.core.plugins import PluginHost
from segue.core.records import KINDS
from segue.core.registry import USER_FILES, USER_VARIABLE, read_registry
from tests.test_structure import ROOMS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


PYTEST_NAMES = {"segue_plugins", "segue_not_isolated", "segue_isolate"}


# --- docstrings ---------------------------------------------------------------------------------


def described_arguments() -> Iterator[tuple[str, str, set[str]]]:
    """Every name below ``Args:`` on the page of the Python reference, and the real arguments."""
    source = (ROOT / "tools" / "site_pages.py").read_text(encoding="utf-8")
    for place in re.findall(r'"(segue\.[\w.]+)"', source):
        module, _, name = place.rpartition(".")
        found = importlib.util.find_spec(place) if name.islower() else None
        holder: Any = importlib.import_module(place if found else module)
        owners = vars(holder).values() if found else vars(getattr(holder, name)).values()
        for item in owners:
            item = getattr(item, "__func__", item)
            if not inspect.isfunction(item) or not item.__doc__:
                continue
            _, _, rest = inspect.cleandoc(item.__doc__).partition("Args:\n")
            for named in re.findall(r"^    (\S[^:\n]*):", rest.partition("\n\n")[0], re.MULTILINE):
                yield f"{place}: {item.__qualname__}", named, {*inspect.signature(item).parameters}


def test_docstrings_name_arguments_one_by_one() -> None:
    found = list(described_arguments())
    assert len(found) > 30
    assert [(place, named) for place, named, real in found if named.strip("*") not in real] == []


# --- hooks ------------------------------------------------------------------------------------


def test_the_hook_reference_is_generated_from_the_code() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "hook_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.TARGET.read_text(encoding="utf-8")
    assert text == module.reference(), "run `python tools/hook_reference.py`"


@pages
def test_hooks_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"\bsegue_[a-z_]+\b", page.read_text(encoding="utf-8")))
    hooks = named - {"segue_toy"} - PYTEST_NAMES
    assert hooks <= set(vars(hookspecs))


def test_names_of_the_pytest_plugin_that_the_docs_use_exist() -> None:
    source = (ROOT / "testing" / "pytest_plugin.py").read_text(encoding="utf-8")
    assert all(name in source for name in PYTEST_NAMES)


# --- commands ---------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[str]:
    """Every `segue ...` in the page, in a block or in a sentence."""
    for text in blocks(page, "console"):
        for line in text.splitlines():
            if line.startswith("$ segue "):
                yield line.removeprefix("$ ").partition("  #")[0].partition(" | ")[0]
    for code in CODE.findall(prose(page)):
        if code.startswith("segue "):
            yield code


@cache
def program() -> Any:
    """The command line, made once: it is looked into for every command of every page."""
    return typer.main.get_command(app)


def check_command(text: str) -> None:
    """Fail unless the program has this command, its options, and room for its arguments."""
    words = shlex.split(text, comments=True)[1:]
    node = program()
    while words and hasattr(node, "commands") and not words[0].startswith("-"):
        assert words[0] in node.commands, f"{text}: no command {words[0]!r}"
        node = node.commands[words.pop(0)]
    options = {name: option for option in node.params for name in option.opts}
    arguments = 0
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            arguments += word not in ("...", "…")
            continue
        name, equals, _ = word.partition("=")
        assert name == "--help" or name in options, f"{text}: no option {name!r}"
        takes_value = name in options and not getattr(options[name], "is_flag", False)
        if takes_value and not equals:
            del words[: options[name].nargs]
    takers = [param for param in node.params if param.param_type_name == "argument"]
    room = math.inf if any(param.nargs < 0 for param in takers) else len(takers)
    assert arguments <= room, f"{text}: too many arguments"


@pages
def test_commands_and_options_that_are_named_exist(page: Path) -> None:
    for text in commands(page):
        check_command(text)


def test_the_check_of_commands_sees_what_is_wrong() -> None:
    check_command("segue continue a.wav -o out.wav --set codec.use=x --seconds 3 --json")
    for wrong in (
        "segue contniue a.wav",
        "segue continue a.wav --second 3",
        "segue continue a.wav b.wav",
        "segue plugins lists",
    ):
        with pytest.raises(AssertionError):
            check_command(wrong)
    assert sum(1 for page in PAGES for _ in commands(page)) > 15


def test_every_command_is_in_the_documentation() -> None:
    text = "\n".join(command for page in PAGES for command in commands(page))
    for name in program().commands:
        if name != "prepare":
            assert f"segue {name}" in text


@pages
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", prose(page))) <= targets
    for text in blocks(page, "console"):
        assert set(re.findall(r"^\$ make ([a-z-]+)", text, re.MULTILINE)) <= targets


# --- links and files --------------------------------------------------------------------------


@pages
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = unquote(link).partition("#")
        if "://" in target:
            continue
        path = page.parent / target if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            missing.append(link)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pages
def test_modules_and_files_that_are_named_exist(page: Path) -> None:
    for code in CODE.findall(prose(page)):
        if re.fullmatch(rf"({'|'.join(ROOMS)}|src|tests|tools|docs)/[\w/.]+", code):
            assert (ROOT / code).exists(), code
        if re.fullmatch(rf"segue\.({'|'.join(ROOMS)})(\.\w+)*", code):
            module = ROOT.joinpath(*code.split(".")[1:])
            found = module.is_dir() or module.with_suffix(".py").exists()
            # Or it is something in a module.
            assert found or module.parent.with_suffix(".py").exists(), code


@pages
def test_prose_is_narrow(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    wide = [line for line in text.splitlines() if len(line) > 120 and line[:1] not in "|!"]
    assert wide == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings_handlers.python", reason="pip install 'segue[docs]'")
    pytest.importorskip("material", reason="pip install 'segue[docs]'")
    for command in (["tools/typing_tree.py"], ["-m", "mkdocs", "build", "-d", str(tmp_path)]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    for name in ("Pipeline.from_pretrained", "Pipeline.continue_", "AcousticCodec.decode"):
        assert f'.{name}"' in reference
    assert "docs/" not in re.findall(r'href="([^"]+)"', (tmp_path / "index.html").read_text())


# --- configuration ----------------------------------------------------------------------------

CONFIGURATION = ROOT / "docs" / "reference" / "configuration.md"


def keys_of(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def code_in(text: str) -> set[str]:
    return set(CODE.findall(text))


def test_keys_of_a_pipeline_are_those_of_the_schema() -> None:
    table = [line.split("|")[1:3] for line in prose(CONFIGURATION).splitlines() if "| `" in line]
    named: set[str] = set()
    for keys, what in table:
        for key in code_in(keys):
            head, _, rest = key.partition(".<name>.")
            assert head in keys_of(PipelineConfig), key
            assert not rest or rest in keys_of(StageConfig), key
            named |= {head, f"stages.{rest}"}
        if "prompt" in keys:
            limits = type(load_config("speech/baseline", PluginHost.discover()).config.prompt)
            assert code_in(what) == keys_of(limits)
        if "sampling" in keys:
            assert code_in(what) == keys_of(Sampling)
    left_out = {f"stages.{key}" for key in keys_of(StageConfig)} | keys_of(PipelineConfig)
    assert left_out - named == {"format_version", "stages.name"}


def test_keys_of_a_component_are_those_of_the_schema() -> None:
    text = prose(CONFIGURATION)
    component = re.search(r"A component is `\{(.+?)\}`", text)
    assert component is not None
    assert set(component.group(1).split(", ")) == keys_of(ComponentConfig)
    training = re.search(r"^- `training`: (.+?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert training is not None
    assert code_in(training.group(1)) == keys_of(TrainingConfig)


def test_the_example_of_a_config_is_one(tmp_path: Path) -> None:
    example = blocks(CONFIGURATION, "yaml")[0].replace("my_codec.v1", "spectral_codec.v1")
    (tmp_path / "mine.yaml").write_text(example)
    loaded = load_config(tmp_path / "mine.yaml", PluginHost.discover())
    assert loaded.config.name == "my-speech"
    stage = loaded.config.stage("acoustic")
    assert stage is not None and stage.sampling.temperature == 0.7


def test_the_example_of_a_registry_file_is_one(tmp_path: Path) -> None:
    example = blocks(CONFIGURATION, "yaml")[1]
    (tmp_path / "mine.yaml").write_text(example)
    registry = read_registry(tmp_path / "mine.yaml")
    assert [record.name for record in registry.records] == ["mine.v1"]
    assert set(yaml.safe_load(example)["plugins"]) <= set(KINDS)
    for name in (*USER_FILES, USER_VARIABLE):
        assert f"`{name}`" in prose(CONFIGURATION)


# --- troubleshooting --------------------------------------------------------------------------


def test_messages_on_the_page_for_problems_are_those_of_the_program() -> None:
    rooms = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    # As one text: messages are split over lines.
    source = re.sub(r'"\s*f?"', "", "".join(path.read_text(encoding="utf-8") for path in rooms))
    page = (ROOT / "docs/how-to/troubleshoot.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")][1:]
    quoted = [message for row in rows for message in CODE.findall(row) if message != "pip"]
    assert len(quoted) > 5
    for message in quoted:
        # A device's name comes from outside.
        assert message.removeprefix("device cuda: ") in source, message
