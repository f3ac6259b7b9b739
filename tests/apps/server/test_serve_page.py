"""Every example of docs/how-to/serve.md works as it is written."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import soundfile
from starlette.testclient import TestClient
from tests.apps.server.conftest import Live

from segue import Pipeline

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "serve.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
CURLS = [
    line.removeprefix("$ ")
    for language, text in BLOCKS
    if language == "console"
    for line in text.splitlines()
    if line.startswith("$ curl")
]
PROGRAMS = [text for language, text in BLOCKS if language == "python"]


@pytest.fixture
def place(live: Live, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def here(text: str, live: Live) -> str:
    assert "127.0.0.1:8000" in text
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{live.port}")


def test_commands(live: Live, place: Path) -> None:
    assert len(CURLS) == 5
    for text in CURLS:
        subprocess.run([*shlex.split(here(text, live)), "--fail"], check=True)
    lengths = {path.name: soundfile.info(path).duration for path in place.glob("*.*a*")}
    assert lengths["out.wav"] == pytest.approx(1.28 + 2) and lengths["new.flac"] == 1
    assert lengths["filled.wav"] == pytest.approx(1.3)
    assert (place / "stream.wav").stat().st_size == 44 + 2 * 2 * 16_000


def test_programs(live: Live, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *clients, _ = PROGRAMS
    assert len(clients) == 2
    for text in clients:
        exec(here(text, live), {})
    assert re.fullmatch(r"seed \d+\n2.0 seconds\n", capsys.readouterr().out)
    assert soundfile.info("out.wav").duration == pytest.approx(1.28 + 2)


def test_a_server_of_your_own(
    served_pipeline: Pipeline, prompt_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda name: served_pipeline)
    names: dict[str, Any] = {}
    exec(PROGRAMS[-1], names)
    client = TestClient(names["app"])
    files = [{"recording": data} for data in (prompt_file.read_bytes(), b"no sound")]
    right, wrong = (client.post("/continue", files=one) for one in files)
    assert soundfile.info(io.BytesIO(right.content)).duration == pytest.approx(1.28 + 2)
    assert wrong.status_code == 422 and "libsndfile" in wrong.text
