"""A reader of a file or directory that is being written sees all of one or nothing."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from segue.core.checkpoint import save_tensors
from segue.core.errors import OutputError
from segue.core.files import (
    atomic_directory,
    atomic_path,
    check_writable,
    write_json,
    write_text,
)

OLD, NEW = "old " * 5000, "new " * 5000

#: Writers that stop half-way, say so and wait to be killed.
HALF_FILE = """
import sys, time
from pathlib import Path
from segue.core.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    with temporary.open("w") as file:
        file.write("new ")
        file.flush()
        print("half", flush=True)
        time.sleep(60)
"""
HALF_DIRECTORY = """
import sys, time
from pathlib import Path
from segue.core.files import atomic_directory
with atomic_directory(Path(sys.argv[1])) as temporary:
    (temporary / "a").write_text("new")
    print("half", flush=True)
    time.sleep(60)
"""
#: Writers that replace what they wrote without a pause.
MANY_FILES = """
import sys
from pathlib import Path
from segue.core.files import write_text
print("half", flush=True)
while True:
    for letter in "ab":
        write_text(Path(sys.argv[1]), letter * 300_000)
"""
MANY_DIRECTORIES = """
import sys
from pathlib import Path
from segue.core.files import atomic_directory
print("half", flush=True)
while True:
    for letter in "ab":
        with atomic_directory(Path(sys.argv[1])) as temporary:
            for name in "xyz":
                (temporary / name).write_text(letter * 50_000)
"""


def kill_while_writing(code: str, path: Path, delay: float = 0.0) -> None:
    """Start a writer and kill it, without a chance to clean up, once it is at work."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_into_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        temporary.write_text(NEW)
        assert not path.exists()
    assert path.read_text() == NEW
    assert everything(path.parent) == ["file.txt"]


def test_files_and_directories_have_the_usual_rights(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "file", NEW)
        with atomic_directory(tmp_path / "folder"):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_threads_that_write_leave_the_umask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can only be read by setting it: two at once could leave it at 0 for good."""
    umask = os.umask

    def slow(value: int) -> int:
        before = umask(value)
        time.sleep(0.005)
        return before

    mask = umask(0o022)
    monkeypatch.setattr(os, "umask", slow)
    try:
        paths = [tmp_path / str(number) for number in range(8)]
        threads = [threading.Thread(target=write_text, args=(path, "x")) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        left = umask(mask)
    assert left == 0o022
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o644}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text(OLD)
    with (
        pytest.raises(OutputError if error is OSError else error),
        atomic_path(path) as temporary,
    ):
        temporary.write_text("new")
        raise error("in the middle")
    assert path.read_text() == OLD
    assert everything(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_old_directory(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "a").write_text(OLD)
    with (
        pytest.raises(OutputError if error is OSError else error),
        atomic_directory(path) as temporary,
    ):
        (temporary / "a").write_text("new")
        raise error("in the middle")
    assert (path / "a").read_text() == OLD
    assert everything(tmp_path) == ["folder"]


def test_an_existing_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_directory(path) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
    assert [child.name for child in (path / "deep").iterdir()] == ["second"]
    assert everything(tmp_path) == ["folder"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text(OLD)
    kill_while_writing(HALF_FILE, path)
    assert path.read_text() == OLD
    assert visible(tmp_path) == ["file.txt"]
    write_text(path, NEW)
    assert path.read_text() == NEW


def test_a_killed_writer_leaves_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    path.mkdir()
    (path / "a").write_text(OLD)
    kill_while_writing(HALF_DIRECTORY, path)
    assert (path / "a").read_text() == OLD
    assert visible(tmp_path) == ["step-1"]
    assert [found.name for found in tmp_path.glob("step-*")] == ["step-1"]


@pytest.mark.parametrize("delay", [0.03, 0.11, 0.2])
def test_killed_at_any_moment_a_file_is_whole(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "a" * 300_000)
    kill_while_writing(MANY_FILES, path, delay)
    text = path.read_text()
    assert text in ("a" * 300_000, "b" * 300_000)
    assert visible(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("delay", [0.03, 0.11, 0.2])
def test_killed_at_any_moment_a_directory_is_whole(tmp_path: Path, delay: float) -> None:
    """Between its two renames the old directory stands under ``.old-``, whole."""
    path = tmp_path / "folder"
    with atomic_directory(path) as temporary:
        for name in "xyz":
            (temporary / name).write_text("a" * 50_000)
    kill_while_writing(MANY_DIRECTORIES, path, delay)
    assert visible(tmp_path) in (["folder"], [])
    found = path if path.exists() else next(tmp_path.glob(".old-folder-*/folder"))
    texts = {name: (found / name).read_text() for name in "xyz"}
    assert set(texts.values()) in ({"a" * 50_000}, {"b" * 50_000})


def test_the_old_directory_is_kept_until_the_new_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the two renames, the old directory stands under ``.old-``, whole."""
    path, rename = tmp_path / "folder", Path.replace
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text(OLD)

    def stopped(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-") and not path.exists():
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt), atomic_directory(path) as temporary:
        (temporary / "a").write_text(NEW)
    found = path if path.exists() else next(tmp_path.glob(".old-folder-*/folder"))
    assert (found / "a").read_text() == OLD


def test_a_full_disk_is_an_output_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    """No file may grow beyond 20 kB: what a full disk looks like."""
    path = tmp_path / "file.txt"
    path.write_text(OLD[:9])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError) as caught:
            write_text(path, "new " * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{path}: cannot be written (File too large); choose")
    assert path.read_text() == OLD[:9]
    assert everything(tmp_path) == ["file.txt"]


def write_directory(path: Path) -> None:
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("a")


@pytest.mark.parametrize(
    "write", [lambda path: write_text(path, "text"), write_directory, check_writable]
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_place_below_a_file_is_refused(tmp_path: Path, write: object, deep: bool) -> None:
    file = tmp_path / "file"
    file.write_text(OLD)
    path = file / "deep" / "x.txt" if deep else file / "x.txt"
    with pytest.raises(OutputError) as caught:
        write(path)  # type: ignore[operator]
    assert caught.value.place == str(path)
    assert f"{file} is a file" in caught.value.problem
    assert "choose a place" in caught.value.fix
    assert file.read_text() == OLD


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(
    "write", [lambda path: write_text(path, "text"), write_directory, check_writable]
)
def test_a_place_where_no_file_can_be_made_is_refused(write: object) -> None:
    path = Path("/proc/segue/x.wav")
    with pytest.raises(OutputError, match=r"^/proc/segue/x\.wav: cannot be written \(.+\); choose"):
        write(path)  # type: ignore[operator]


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    """Else `--output /dev/null` would, run as root, take the machine's /dev/null away."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="pipe"):
        write_text(pipe, NEW)
    assert pipe.is_fifo()
    assert everything(tmp_path) == ["pipe"]


def test_a_directory_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for write in (check_writable, lambda path: write_text(path, NEW)):
        with pytest.raises(OutputError, match=f"{folder}: is a directory; name a file"):
            write(folder)
    assert folder.is_dir()
    assert everything(tmp_path) == ["folder"]


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for write in (check_writable, lambda path: write_text(path, NEW)):
        with pytest.raises(OutputError, match=r"cannot be written \(File name too long\)"):
            write(tmp_path / ("a" * 300))
    assert everything(tmp_path) == []


def test_checking_a_place_leaves_nothing_and_alters_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old.wav"
    old.write_text(OLD)
    before = old.stat()
    check_writable(old)
    check_writable(tmp_path / "new.wav")
    assert everything(tmp_path) == ["old.wav"]
    assert (old.read_text(), old.stat().st_mtime_ns) == (OLD, before.st_mtime_ns)


def test_json_keeps_its_order_and_letters(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": "Dvořák", "a": [1]})
    text = path.read_text(encoding="utf-8")
    assert "Dvořák" in text and text.index('"b"') < text.index('"a"') and text.endswith("}\n")


def test_saved_weights_have_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_directory(tmp_path / "new") as temporary:
            (temporary / "inside").mkdir(mode=0o700)
            save_tensors({"a": torch.zeros(3)}, temporary / "inside" / "model.safetensors")
    finally:
        os.umask(before)
    inside = tmp_path / "new" / "inside"
    modes = [path.stat().st_mode & 0o777 for path in (inside, inside / "model.safetensors")]
    assert modes == [0o750, 0o640]


def test_a_check_makes_no_folder_that_another_start_could_find_and_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, touch, seen = tmp_path / "new" / "deep" / "a.wav", Path.touch, []

    def spy(probe: Path) -> None:
        touch(probe)
        seen.append((probe.name, (tmp_path / "new").exists()))

    monkeypatch.setattr(Path, "touch", spy)
    check_writable(path)
    assert seen == [("a.wav", False)]
    assert everything(tmp_path) == []


@pytest.mark.parametrize("goes_again", [False, True])
def test_directories_that_are_written_at_the_same_time_replace_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_again: bool
) -> None:
    """A rival's comes, and may go again, between any two steps."""
    path, rename, calls = tmp_path / "new" / "step", Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 1:
            path.mkdir(parents=True)
            (path / "rival").touch()
        elif len(calls) == 2 and goes_again:
            shutil.rmtree(path)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with atomic_directory(path) as folder:
        (folder / "mine").touch()
    assert [each.name for each in path.iterdir()] == ["mine"]
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_taken_away_while_a_file_is_begun_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, make, taken = tmp_path / "new" / "a.txt", tempfile.mkstemp, []

    def take_away(**options: Any) -> tuple[int, str]:
        if not taken:
            path.parent.rmdir()
            taken.append(path)
        return make(**options)

    monkeypatch.setattr(tempfile, "mkstemp", take_away)
    write_text(path, NEW)
    assert taken and path.read_text() == NEW
