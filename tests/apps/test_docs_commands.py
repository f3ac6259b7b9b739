"""Commands and code of the README are run, with tiny pipelines in place of the shipped ones."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests.apps.conftest import Segue
from tests.test_docs import PAGES, ROOT, blocks, commands

README = ROOT / "README.md"
#: Commands that another test runs, or that run until they are stopped → that test.
ELSEWHERE = {
    "segue stream": "tests/apps/test_cli_stream.py",
    "segue continue -": "tests/apps/test_cli_process.py",
    "segue web": "tests/apps/test_web_browser.py",
    "segue train": "tests/apps/test_cli_training.py",
    "segue continue prompt.wav -o out.wav --pipeline runs/mine": "tests/apps/test_cli_training.py",
    "segue detect": "tests/apps/test_cli_detect.py",
    "segue serve": "tests/apps/server",
    "segue fill": "tests/apps/test_cli_generation.py",
}


def elsewhere(text: str) -> bool:
    return any(f"{text} ".startswith((f"{start} ", f"{start}/")) for start in ELSEWHERE)


def runnable() -> list[str]:
    """Every command of the README, and those of all pages that need no recordings or training."""
    found = [text for text in commands(README) if not text.endswith("...")]
    for page in PAGES:
        for text in blocks(page, "console"):
            lines = (line.removeprefix("$ ").partition("  #")[0] for line in text.splitlines())
            found += [line for line in lines if re.match(r"segue (config|plot tokens) ", line)]
    # Others' weights are not here.
    found = [text.strip() for text in found if "options.pretrained" not in text]
    return [text for text in dict.fromkeys(found) if not elsewhere(text)]


def test_commands_that_are_run_elsewhere_are_still_in_the_readme_or_planned() -> None:
    text = "\n".join(commands(README))
    for start, place in ELSEWHERE.items():
        assert start not in text or (ROOT / place).exists(), place


@pytest.mark.parametrize("text", runnable())
def test_commands_of_the_documentation_work(
    segue: Segue, shipped: dict[str, Path], prompt_file: Path, place: Path, text: str
) -> None:
    shutil.copy(prompt_file, place / "prompt.wav")
    done = segue(*shlex.split(text, comments=True)[1:])
    assert done.code == 0, done.err


@pytest.mark.parametrize("index", range(len(blocks(README, "python"))))
def test_code_of_the_readme_runs(
    shipped: dict[str, Path], prompt_file: Path, place: Path, index: int
) -> None:
    shutil.copy(prompt_file, place / "prompt.wav")
    exec(compile(blocks(README, "python")[index], "README.md", "exec"), {})
    assert list(place.glob("out.*"))
