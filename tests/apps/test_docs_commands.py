"""Commands and code of the README are run, with tiny pipelines in place of the shipped ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.apps.conftest import Segue
from tests.test_docs import PAGES, ROOT, blocks, commands

README = ROOT / "README.md"
CLI = "tests/apps/test_cli_"
#: Commands that a test runs with other values, or that run until they are stopped → that test.
ELSEWHERE = {
    "pip install .": "tests/test_packaging.py",
    "make": "Makefile",  # `make demo` and `make test` are what CI runs
    "cat prompt.wav | segue continue -": f"{CLI}process.py",
    "segue stream": f"{CLI}stream.py",
    "segue continue -": f"{CLI}process.py",
    "segue web": "tests/apps/test_web_browser.py",
    "segue train": f"{CLI}training.py",
    "segue train-detector": f"{CLI}detect.py",
    "segue continue prompt.wav -o out.wav --pipeline runs/mine": f"{CLI}training.py",
    "segue continue prompt.wav -o out.wav --sign": f"{CLI}detect.py",
    "segue continue prompt.wav -o out.wav --domain speech --set codec.use=mine.v1": (
        "examples/third_party_plugin"
    ),
    "segue detect": f"{CLI}detect.py",
    "segue serve": "tests/apps/server",
    "segue --install-completion": f"{CLI}commands.py",
    "curl": "tests/apps/server",
    "pip install 'ray[serve]'": "tests/apps/server/test_ray_serve.py",
    "serve run": "tests/apps/server/test_ray_serve.py",
    "segue fill": f"{CLI}generation.py",
    "segue prepare": f"{CLI}training.py",
    "segue tokenize": f"{CLI}training.py",
    "segue label": f"{CLI}label.py",
    "segue evaluate": f"{CLI}evaluate.py",
    "segue reproduce": f"{CLI}reproduce.py",
    "segue plot": f"{CLI}evaluate.py",
    "segue new-plugin": f"{CLI}new_plugin.py",
    "segue plugins install": f"{CLI}new_plugin.py",
    "segue plugins check": f"{CLI}new_plugin.py",
}
#: Commands that nothing here can run → why.
CANNOT = {
    "docker": "no Docker here; its steps are those of the Dockerfile",
    "kubectl": "no cluster here",
    "torchrun": "several machines or GPUs; tests/training/test_ranks.py starts ranks itself",
    "python tools/import_whisper.py": "Whisper's weights are not here",
    "python tools/import_lyra.py": "Lyra's .tflite files are not here",
    "python tools/render_piano.py": "no soundfonts here; tests/test_sound_data.py tests its parts",
}
#: Pages whose blocks run as they stand: by a test below, and by tests/apps/server.
AS_THEY_STAND = ("how-to/mark.md", "how-to/serve.md")


ON_PAGES = "config|plot tokens|continue prompt.wav -o out.wav"  # run wherever they stand


def elsewhere(text: str) -> bool:
    return any(f"{text} ".startswith((f"{start} ", f"{start}/")) for start in ELSEWHERE)


def shell_lines(page: Path) -> list[str]:
    """Every command of the page's blocks, in one line each."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    return [line.partition("  #")[0].strip() for line in lines]


def runnable() -> list[str]:
    """Every command of the README, and those of all pages that need no recordings or training."""
    found = [text for text in commands(README) if not text.endswith("...")]
    for page in PAGES:
        for text in blocks(page, "console"):
            lines = (line.removeprefix("$ ").partition("  #")[0] for line in text.splitlines())
            found += [line for line in lines if re.match(f"segue ({ON_PAGES}) ", line)]
    # Others' weights are not here.
    found = [text.strip() for text in found if "options.pretrained" not in text]
    return [text for text in dict.fromkeys(found) if not elsewhere(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_run_by_a_test_or_cannot_be_run_here(page: Path) -> None:
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    run = runnable()
    for line in shell_lines(page):
        if page.parent.name == "results":  # hours of work; that the options exist is tested
            continue
        if found := re.fullmatch(r"pip install 'segue\[(\w+)\]'", line):
            assert f"\n{found[1]} = [" in extras
            continue
        known = elsewhere(line) or line in run or line.startswith(tuple(CANNOT))
        others_weights = "options.pretrained" in line
        assert known or others_weights or str(page).endswith(AS_THEY_STAND), line


def test_tests_that_run_commands_exist() -> None:
    assert all((ROOT / place).exists() for place in ELSEWHERE.values())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="the page makes certificates with it")
def test_the_page_on_marks_works_as_it_stands(prompt_file: Path, place: Path) -> None:
    pytest.importorskip("c2pa", reason="pip install 'segue[provenance]'")
    page = ROOT / "docs/how-to/mark.md"
    shutil.copy(prompt_file, place / "prompt.wav")
    Path("segue-registry.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")
    lines = [line for line in shell_lines(page) if not line.startswith("pip ")]
    lines.sort(key=lambda line: line.startswith("segue "))  # certificates first
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("SEGUE_REGISTRY", None)  # the page's own file counts
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "signed by My studio, Me with Segue" in told and "intact" in told
    assert "comment: made by Segue" in told and re.search(r"watermark in [3-6] s", told)


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
