"""Threads: what a config asks for, what the user asks for, and what makes a machine slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from segue import Pipeline
from segue.apps.cli import doctor
from segue.core.config_files import load_config
from segue.core.errors import ConfigError
from segue.core.plugins import default_host
from segue.inference import threads
from segue.inference.threads import VARIABLE, thread_troubles
from segue.training.workspace import Workspace


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv(VARIABLE, raising=False)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}.get(name, ""))
    yield
    torch.set_num_threads(before)


def test_a_config_chooses_threads_unless_the_user_does(
    tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.from_pretrained(tiny_pipelines["speech"], overrides=["threads=3"])
    assert torch.get_num_threads() == 3
    saved = pipeline.save_pretrained(tmp_path / "saved")  # another machine has other cores
    assert "threads" not in yaml.safe_load((saved / "pipeline.yaml").read_text())
    assert "threads" not in pipeline.generate(0.2).metadata["config"]
    config = load_config(tiny_pipelines["speech"], default_host(), ["threads=2"]).config
    Workspace(config, tmp_path, None, default_host())
    assert torch.get_num_threads() == 2
    monkeypatch.setenv(VARIABLE, "4")
    Pipeline.from_pretrained(tiny_pipelines["speech"], overrides=["threads=3"])
    assert torch.get_num_threads() == 2


def test_pytorch_is_not_told_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """To set a count, be it the same, makes MKL share out the smallest logarithms."""
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    now = torch.get_num_threads()
    threads.use_threads(now)
    threads.use_threads(now + 1)
    assert told == [now + 1]


def test_what_slows_a_machine_down_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert thread_troubles() == [] == doctor._threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "64,8")
    (crowd,) = thread_troubles()
    assert crowd.startswith("64 threads on 2 cores") and f"set {VARIABLE}=2" in crowd
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", str(threads.SPINS))  # short enough
    assert thread_troubles() == []
    slow = ("infinite", "30M", str(threads.SPINS + 1))
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), *(("GOMP_SPINCOUNT", n) for n in slow)):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert doctor._threads() == [("threads", "slow", thread_troubles()[0])]
            assert "unset OMP_WAIT_POLICY" in thread_troubles()[0]


def test_absurd_numbers_of_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP would end the process."""
    monkeypatch.delenv(VARIABLE, raising=False)
    for count in (0, -1, 1025, 10**6, 10**30):
        with pytest.raises(ConfigError, match=rf"^threads: '{count}' .* use 1 to 1024"):
            threads.use_threads(count)
    monkeypatch.setenv(VARIABLE, "1000000")
    with pytest.raises(ConfigError, match=f"^{VARIABLE}: "):
        threads.prepare_threads()
