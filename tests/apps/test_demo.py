"""`make demo` continues the shipped prompts, or a prompt of one's own, by `segue continue`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = "#!/bin/sh\necho $@\ntest $4 != nothing\n"


def demo(folder: Path, *settings: str) -> list[str]:
    """Return the commands that `make demo` runs, with a stand-in for `segue`."""
    (folder / "segue").write_text(STUB, encoding="utf-8")
    (folder / "segue").chmod(0o755)
    command = ["make", "-C", str(ROOT), "--no-print-directory", "demo", "DEMO=", f"BIN={folder}"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def made(domain: str, prompt: str) -> str:
    files = f"--output demo_output/{domain}.wav --picture demo_output/{domain}.png"
    return f"continue {prompt} --domain {domain} --seconds 6 {files}"


def test_both_domains_continue_their_shipped_prompts(tmp_path: Path) -> None:
    prompts = {name: f"plugins/domains/{name}/prompt.flac" for name in ("speech", "piano")}
    assert demo(tmp_path) == [made(*pair) for pair in prompts.items()]
    assert all((ROOT / prompt).is_file() for prompt in prompts.values())


def test_a_prompt_or_a_pipeline_of_ones_own(tmp_path: Path) -> None:
    assert demo(tmp_path, "PROMPT=my take.wav") == [made("speech", "my take.wav")]
    assert demo(tmp_path, "PROMPT=a.wav", "DOMAIN=piano") == [made("piano", "a.wav")]
    textless = made("speech/textless", "plugins/domains/speech/prompt.flac")
    assert demo(tmp_path, "DOMAIN=speech/textless") == [textless]


def test_a_command_that_fails_ends_the_demo(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        demo(tmp_path, "DOMAIN=nothing piano")
