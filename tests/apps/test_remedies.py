"""What an error tells the user to type works when it is typed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from tests.apps.conftest import Finished, Segue
from tests.test_structure import ROOMS

from segue.apps.cli.main import app
from segue.core.audio import check_format
from segue.core.plugins import PluginHost, reset_default_host

ROOT = Path(__file__).resolve().parents[2]

Arguments = Sequence[object]
Follow = Callable[[str, Arguments], Arguments]


# --- every command, option and package that any error names -----------------------------------


@pytest.fixture(scope="module")
def all_fixes() -> list[tuple[str, str]]:
    """The place and the text of each error's fix, with ``{}`` for what is filled in."""
    found = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for value in fixes(node):
                    text = "".join(literals(value))
                    found.append((f"{path.relative_to(ROOT)}:{value.lineno}", text))
    return found


def fixes(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign) and "fix" in ast.unparse(node.targets[0]):
        return [node.value]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
        return node.args[2:3]
    return []


def literals(value: ast.expr) -> Iterator[str]:
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield f"{node.value} "


def commands() -> dict[str, click.Command]:
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        found[name] = command
        for child, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {child}".strip())

    walk(typer.main.get_command(app), "")
    return found


def test_every_command_and_option_that_an_error_names_exists(
    all_fixes: list[tuple[str, str]],
) -> None:
    known = commands()
    options = {text for command in known.values() for one in command.params for text in one.opts}
    named = 0
    for place, text in all_fixes:
        for words in re.findall(r"segue ([a-z-]+(?: [a-z_]+)?)", text.replace("`", "` ")):
            first, _, second = words.partition(" ")
            named += 1
            assert first in known, f"{place}: there is no `segue {first}`"
            inner = getattr(known[first], "commands", None)
            assert inner is None or second in inner, f"{place}: there is no `segue {words}`"
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            named += 1
            assert option in options, f"{place}: no command has {option}"
    assert named > 30


def test_every_extra_that_an_error_names_exists(all_fixes: list[tuple[str, str]]) -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, listed = listed.partition("[project.optional-dependencies]")
    extras = re.findall(r"^([a-z]+) = \[", listed.partition("\n[")[0], re.MULTILINE)
    named = [extra for _, text in all_fixes for extra in re.findall(r"segue\[([a-z]+)\]", text)]
    records = [r for kind in ("metric", "codec") for r in PluginHost.discover().records(kind)]  # type: ignore[arg-type]
    named += [record.extra for record in records if record.extra and "segue" in record.source]
    assert len(set(named)) > 3 and set(named) <= set(extras)


# --- errors of which each remedy is carried out ------------------------------------------------


def settings(error: str, wrong: Arguments) -> Arguments:
    """Add the `--set` that the error asks for."""
    return (*wrong, *re.findall(r"--set \S+", error)[-1].rstrip(".;,").split())


def replaced(error: str, wrong: Arguments) -> Arguments:
    """Write the suggested word in place of the one that is at fault."""
    (close,) = re.findall(r"did you mean '([^']+)'", error)
    old = re.findall(r"([\w.]+): (?:unknown key|there is no)", error)[0].split(".")[-1]
    return [str(part).replace(old, close) for part in wrong]


def instead(pattern: str, at: int = -1) -> Follow:
    """Put what the error shows in place of an argument."""

    def follow(error: str, wrong: Arguments) -> Arguments:
        found = re.search(pattern, error)
        assert found, error
        return [found[1] if part is wrong[at] else part for part in wrong]

    return follow


def without(*words: str) -> Follow:
    return lambda error, wrong: [part for part in wrong if part not in words]


VALID = ("config", "validate")
ANEW = "train .*again: --set "

#: A wrong command, what its error must say, and how the user follows it.
CASES: dict[str, tuple[Arguments, str, Follow]] = {
    "a single recording, which is for training": (
        ("evaluate", "codec", "-p", "TINY", "--data", "ALONE", "--metrics", "si_sdr.v1"),
        "of all splits: --split all", lambda _, wrong: [*wrong, "--split", "all"]),
    "another plugin's checkpoint": (
        (*VALID, "TINY", "--set", "codec.use=soundstream.v1", "--set", "codec.checkpoint=CODEC"),
        "use it: --set codec.use=", settings),
    "other options than the checkpoint's": (
        (*VALID, "TINY", "--set", "codec.options.width=32"), ANEW, settings),
    "other clusters": (
        (*VALID, "TINY", "--set", "semantic_tokenizer.options.num_clusters=9"), ANEW, settings),
    "another slice": ((*VALID, "TINY", "--set", "stages.acoustic.given=[]"), ANEW, settings),
    "too many levels": (
        (*VALID, "speech/baseline", "--set", "stages.acoustic.predicts=acoustic[0:13]"),
        r"write acoustic\[0:12\]",
        lambda error, wrong: (*wrong[:-1], "stages.acoustic.predicts=acoustic[0:12]")),
    "a misspelt option": (
        (*VALID, "TINY", "--set", "codec.training.stesp=3"), "did you mean 'steps'", replaced),
    "a misspelt stage": (
        (*VALID, "TINY", "--set", "stages.acustic.crop_seconds=2"),
        "choose one of semantic, acoustic",
        lambda error, wrong: (*wrong[:-1], "stages.acoustic.crop_seconds=2")),
    "no assignment": (
        (*VALID, "TINY", "--set", "prompt.max_seconds"), r"write --set path\.to\.key=value",
        lambda error, wrong: (*wrong[:-1], "prompt.max_seconds=9")),
    "a path that is not there": (
        ("config", "explain", "TINY", "codek"), "start with one of",
        instead(r"start with one of ([a-z_]+)")),
    "an unknown variant": (
        (*VALID, "speech/nope"), "choose one of", instead("choose one of .*(speech/baseline)")),
    "two pipelines": (
        ("generate", "-p", "TINY", "--domain", "speech", "--seconds", 0.2), "leave one out",
        without("--domain", "speech")),
    "guidance without its training": (
        ("generate", "-p", "TINY", "--seconds", 0.2, "--set",
         "stages.acoustic.sampling.guidance=2"),
        "--set stages.acoustic.lm.options.condition_dropout=0.1", settings),
    "too many levels to decode": (
        ("resynthesize", "PROMPT", "-p", "TINY", "--levels", 9), "use 1 to 3",
        instead("use 1 to ([0-9]+)")),
    "an unknown way": (
        ("resynthesize", "PROMPT", "-p", "TINY", "--through", "magic"), "use one of codec",
        instead("use one of ([a-z]+)")),
    "levels beside another way": (
        ("resynthesize", "PROMPT", "-p", "TINY", "--through", "semantic", "--levels", 2),
        "leave it out", without("--levels", 2)),  # type: ignore[arg-type]
    "no seconds": (
        ("generate", "-p", "TINY", "--seconds", "0"), "use more than 0",
        lambda error, wrong: (*wrong[:-1], 0.2)),
    "an unknown GPU": (
        ("train", "codec", "--plan", "--config", "CONFIG", "--gpu", "Z80"), "use one of",
        instead("use one of ([A-Z0-9]+)")),
    "rank and world": (
        ("tokenize", "--config", "CONFIG", "--data", "DATA", "-o", "run", "--rank", 3),
        "use 0 to 0", instead("use 0 to ([0-9]+)")),
    "a misspelt component": (
        (*VALID, "TINY", "--set", "codec.use=soundstraem.v1", "--set",
         "stages.acoustic.lm.checkpoint=null"),
        "did you mean 'soundstream.v1'",
        lambda error, wrong: [str(part).replace("straem", "stream") for part in wrong]),
}  # fmt: skip


def shown(command: Arguments, names: dict[str, object]) -> list[object]:
    """Fill in the places of a case."""
    found: list[object] = []
    for part in command:
        for name, value in names.items():
            part = str(part).replace(name, str(value)) if name in str(part) else part
        found.append(part)
    return found


@pytest.fixture
def names(tiny: Path, prompt_file: Path, recordings_folder: Path) -> dict[str, object]:
    return {
        "TINY": tiny, "PROMPT": prompt_file, "DATA": recordings_folder, "CODEC": tiny / "codec",
        "CONFIG": tiny / "pipeline.yaml", "ALONE": prompt_file.parent,
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_an_error_asks_for_works(case: str, segue: Segue, names: dict[str, object]) -> None:
    wrong, says, follow = CASES[case]
    command: Arguments = shown(wrong, names)
    done = segue(*command)
    assert done.code == 2 and re.search(says, done.err), done.err
    for _ in range(4):  # following one may show the next one
        command = follow(done.err, command)
        done = segue(*command)
        if done.code == 0:
            return
    raise AssertionError(done.err)


def carried_out(segue: Segue, error: str, pattern: str, data: Path) -> Finished:
    """Run the command that an error shows."""
    found = re.search(pattern, error)
    assert found, error
    return segue(*shlex.split(found[1].replace("FOLDER", str(data)))[1:])


def test_an_untrained_part_is_trained_by_the_command_shown(
    segue: Segue, tiny: Path, recordings_folder: Path
) -> None:
    anew = ("--set", "stages.semantic.lm.checkpoint=null", "--set", "name=not it")
    wrong = segue("generate", "-p", tiny, *anew)
    done = carried_out(segue, wrong.err, "train it: (segue train .*); then", recordings_folder)
    assert wrong.code == 2 and done.code == 0, wrong.err + done.err
    (pipeline,) = re.findall(r"then name (\S+)", wrong.err)
    assert segue("generate", "-p", pipeline, "--seconds", 0.2).code == 0


def test_tokens_are_written_by_the_command_shown(
    segue: Segue, tiny: Path, recordings_folder: Path
) -> None:
    same = ("--config", tiny / "pipeline.yaml", "-o", "run")
    stage = ("train", "stages.semantic", *same)
    wrong = segue(*stage)
    assert wrong.refused("run `segue tokenize` first")
    assert segue("tokenize", *same, "--data", recordings_folder).code == 0
    assert segue(*stage).code == 0


def test_every_suggested_suffix_can_be_written(segue: Segue, names: dict[str, object]) -> None:
    wrong = segue("resynthesize", names["PROMPT"], "-p", names["TINY"], "-o", "out.mp5")
    suffixes = re.findall(r"\.[a-z0-9]+(?=[,\n])", wrong.err.partition("use one of")[2])
    assert wrong.code == 2 and len(suffixes) > 4 and ".mp3" in suffixes
    for suffix in suffixes:
        check_format(Path(f"out{suffix}"))
    assert segue("resynthesize", names["PROMPT"], "-p", names["TINY"], "-o", "out.mp3").code == 0


# --- errors about plugins: the user edits the registry file, or the command --------------------

CHECK = ("plugins", "check")
RAISING = """
from segue.core.hookspecs import hookimpl

@hookimpl
def segue_before_generate():
    raise RuntimeError("no")
"""


def found_in(error: str, pattern: str) -> str:
    found = re.search(pattern, error)
    assert found, error
    return found[1]


def pinned(error: str) -> str:
    return "pins: " + found_in(error, r"pins: (\{.*?\})")


#: Registry file, command, what the error says; then the registry file and command that it asks for.
PLUGIN_CASES: dict[str, tuple[str, Arguments, str, Callable[[str], str], Follow | None]] = {
    "a name of two plugins": (
        "", (*CHECK, "loudness.v1"), "choose one in", pinned, None),
    "a pin to nobody": (
        "pins: {metric/loudness.v1: nobody}", (*CHECK, "loudness.v1"), "change that to", pinned,
        None),
    "a pin to nobody, removed": (
        "pins: {codec/spectral_codec.v1: ./gone.yaml}", (*VALID, "TINY"), "or remove it",
        lambda _: "", None),
    "a pin of a name that nobody has": (
        "pins: {codec/spectral_codc.v1: nobody}",
        (*VALID, "TINY", "--set", "codec.use=spectral_codc.v1"),
        "segue-registry.yaml pins to 'nobody'; did you mean 'spectral_codec.v1'", lambda _: "",
        lambda _, wrong: [*wrong[:-1], "codec.use=spectral_codec.v1"]),
    "a blocked name": (
        "blocked: [metric/pesq.v1, codec/spectral_codec.v1]", (*VALID, "TINY"),
        "remove it from the list `blocked`", lambda _: "blocked: [metric/pesq.v1]", None),
    "a hook that fails": (
        "hooks: [raising_hook]", ("generate", "-p", "TINY", "--seconds", 0.2),
        "take raising_hook off the list `hooks`", lambda _: "hooks: []", None),
    "a misspelt name": (
        "", (*CHECK, "si_sd.v1"), "did you mean", lambda _: "",
        instead(r"did you mean '([^']+)'")),
    "options that are no mapping": (
        "", (*CHECK, "si_sdr.v1", "--options", "5"), "write '{key: value}'", lambda _: "",
        lambda _, wrong: [*wrong[:-1], "{}"]),
    "an unknown option": (
        "", (*CHECK, "spectral_detector.v1", "--options", "{band: 32}"), "did you mean 'bands'",
        lambda _: "", lambda _, wrong: [*wrong[:-1], "{bands: 32}"]),
}  # fmt: skip


@pytest.mark.parametrize("case", PLUGIN_CASES)
def test_what_an_error_about_plugins_asks_for_works(
    case: str,
    segue: Segue,
    tiny: Path,
    place: Path,
    install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (place / "raising_hook.py").write_text(RAISING)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("SEGUE_REGISTRY", str(place / "segue-registry.yaml"))
    install("good", "rival")
    registry, wrong, says, mend, follow = PLUGIN_CASES[case]

    def run(registry: str, command: Arguments) -> Finished:
        (place / "segue-registry.yaml").write_text(f"api_version: 1\n{registry}\n")
        reset_default_host()
        return segue(*shown(command, {"TINY": tiny}))

    done = run(registry, wrong)
    assert done.code == 2 and says in done.err, done.err
    after = run(mend(done.err), wrong if follow is None else follow(done.err, wrong))
    # A check that finds faults in a component has found the component.
    assert after.code in ((0, 1) if wrong[0] == "plugins" else (0,)), after.err


def test_a_registry_file_that_is_not_there(
    segue: Segue, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setenv("SEGUE_REGISTRY", "nope.yaml")
    reset_default_host()
    wrong = segue("plugins", "list")
    assert wrong.refused("set SEGUE_REGISTRY to a registry file, or unset it")
    (place / "nope.yaml").write_text("api_version: 1\n")
    assert segue("plugins", "list").code == 0
    monkeypatch.delenv("SEGUE_REGISTRY")
    assert segue("plugins", "list").code == 0
