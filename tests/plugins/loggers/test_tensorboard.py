"""Curves in TensorBoard: each training directory gets its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from segue.plugins.loggers.tensorboard import segue_train_logged


def test_a_folder_of_the_same_name_gets_its_own_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    run = Path("run/codec")
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        monkeypatch.chdir(place)
        segue_train_logged(part="codec", step=1, directory=run, figures={"loss": 1.0})
        assert list(Path("run/codec/tensorboard").iterdir())


def test_a_run_that_was_deleted_begins_new_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for _ in range(2):
        segue_train_logged(part="codec", step=1, directory=tmp_path, figures={"loss": 1.0})
        assert list((tmp_path / "tensorboard").iterdir())
        shutil.rmtree(tmp_path / "tensorboard")
