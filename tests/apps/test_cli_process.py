"""The command line as a process of its own: how fast it answers, signals, pipes, broken plugins."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import soundfile
from tests.apps.conftest import Segue, snapshot

from segue.inference import threads

COMMAND = [sys.executable, "-m", "segue.apps.cli.main"]
PLUGINS = Path(__file__).parent.parent / "plugin_fixtures"

#: Run commands and say which heavy modules they imported.
IMPORTED = """
import sys
from segue.apps.cli.main import main
heavy = {"torch", "torchaudio", "soundfile", "numpy", "sklearn", "matplotlib", "safetensors"}
for command in (
    "--help", "continue --help", "plugins list", "config validate speech",
    "config explain piano --json",
):
    sys.argv = ["segue", *command.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, command
print("imported", *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""

#: Says that generation begins, and lets it begin.
HOOK = """
from pathlib import Path
from segue.core.hookspecs import hookimpl

@hookimpl
def segue_before_generate(pipeline, request):
    Path("begun").touch()
"""


def environment(**changes: str) -> dict[str, str]:
    isolating = ("SEGUE_PLUGINS", "SEGUE_REGISTRY")  # these processes find what is installed
    kept = {key: value for key, value in os.environ.items() if key not in isolating}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **changes}


def run(command: list[str], folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_light_commands_import_nothing_heavy_and_answer_at_once(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run([sys.executable, "-c", IMPORTED], tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["imported"]
    # Time of this process alone, so that a busy machine fails nobody; all five take it together.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_the_installed_program_is_this_one(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("segue")
    if not program.exists():
        pytest.skip("Segue is on the path, not installed")
    done = run([str(program), "--version"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("segue ")


def test_ctrl_c_leaves_nothing(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "announcing_hook.py").write_text(HOOK)
    registry = tmp_path / "mine.yaml"
    registry.write_text("api_version: 1\nhooks: [announcing_hook]\n")
    folder = tmp_path / "place"
    folder.mkdir()
    arguments = ["generate", "-o", "new/out.wav", "--pipeline", str(tiny), "--seconds", "3600"]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(SEGUE_REGISTRY=str(registry), PYTHONPATH=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        for _ in range(1200):
            if (folder / "begun").exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert list(snapshot(folder)) == ["begun"]


def test_a_closed_pipe_is_no_mistake(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [*COMMAND, "config", "explain", "speech"],
            cwd=tmp_path,
            env=environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_terminal_that_lacks_letters(tmp_path: Path) -> None:
    done = run([*COMMAND, "config", "show", "é"], tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and r"error: \xe9: is not a domain" in done.stderr
    listed = run([*COMMAND, "plugins", "list"], tmp_path, PYTHONIOENCODING="ascii")
    assert listed.returncode == 0 and "mel_kmeans.v1" in listed.stdout


def test_a_broken_plugin_is_named_and_stops_nothing(tmp_path: Path) -> None:
    folders = [str(PLUGINS / name) for name in ("broken_import", "exits", "good")]
    path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    done = run([*COMMAND, "plugins", "list"], tmp_path, PYTHONPATH=path)
    assert done.returncode == 0
    assert "spectral_codec.v1" in done.stdout and "segue-good" in done.stdout
    broken = {line.split(": ")[1]: line for line in done.stderr.splitlines()}
    assert broken["segue-broken-import"].startswith("broken: ")
    assert "a_module_that_nobody_installed" in broken["segue-broken-import"]
    assert "segue-exits" in broken


def test_a_broken_registry_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "segue-registry.yaml").write_text("api_version: 1\nplugin: {}\n")
    done = run([*COMMAND, "plugins", "list"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "segue-registry.yaml" in done.stderr and "plugin" in done.stderr


def test_audio_travels_through_pipes(
    tmp_path: Path, tiny: Path, prompt_file: Path, segue: Segue
) -> None:
    with prompt_file.open("rb") as prompt:
        done = subprocess.run(
            [*COMMAND, "continue", "-", "-o", "-", "-p", str(tiny), "--seconds", "0.5"],
            cwd=tmp_path,
            env=environment(),
            stdin=prompt,
            capture_output=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr.decode()
    (tmp_path / "piped.wav").write_bytes(done.stdout)
    assert segue("continue", prompt_file, "-p", tiny, "--seconds", 0.5).code == 0
    piped, rate = soundfile.read(tmp_path / "piped.wav")
    written, _ = soundfile.read("continuation.wav")
    assert rate == 16_000
    numpy.testing.assert_array_equal(piped, written)


def test_a_reader_that_leaves_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "--help"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.parametrize("command", [("config", "show", "nothing"), ("continue", "nothing")])
def test_a_traceback_may_be_asked_for_before_and_behind_a_command(
    segue: Segue, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SEGUE_DEBUG", "0")
    assert "Traceback" not in segue(*command).err
    monkeypatch.setenv("SEGUE_DEBUG", "1")
    shown = [segue(*command)]
    for arguments in (("--traceback", *command), (*command, "--traceback")):
        monkeypatch.setenv("SEGUE_DEBUG", "0")  # the option changes it
        shown.append(segue(*arguments))
    for done in shown:
        assert done.code == 2 and "Traceback" in done.err
        assert done.err.splitlines()[-1].startswith("error: nothing: ")


THREADS = """
import os, sys
from segue.inference.threads import prepare_threads
prepare_threads()
import torch
print(torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"])
"""


def test_threads_are_those_asked_for_and_wait_without_spinning(
    tmp_path: Path, segue: Segue
) -> None:
    changes = {"SEGUE_THREADS": "1", "OMP_NUM_THREADS": "2"}
    assert run([sys.executable, "-c", THREADS], tmp_path, **changes).stdout == "1 PASSIVE\n"
    done = segue("--threads", "0", "doctor")
    assert done.code == 2 and "--threads: '0'" in done.err


def test_threads_stay_within_the_cores_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "CPU_MAX", tmp_path / "cpu.max")
    cores = threads.available_cores()
    assert cores == len(os.sched_getaffinity(0))
    for quota, most in (("max 100000", cores), ("100000 100000", 1), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(quota)
        assert threads.available_cores() == most


FORK = """
import os, signal, sys, time
import torch
from segue import Pipeline

torch.set_num_threads(2)
many = torch.ones(1 << 20)
pipeline = Pipeline.from_pretrained(sys.argv[1])
wave = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
wanted = pipeline.continue_(wave, 16_000, seconds=0.2).row()
assert float(many.add(1).sum()) == 2 << 20  # starts the parent's threads
child = os.fork()
if not child:
    signal.alarm(120)
    alike = torch.equal(pipeline.continue_(wave, 16_000, seconds=0.2).row(), wanted)
    right = alike and float(many.add(1).sum()) == 2 << 20
    os._exit(0 if right and torch.get_num_threads() == 1 else 1)
print(os.waitpid(child, 0)[1], torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_forked_after_loading_computes(tiny: Path, tmp_path: Path) -> None:
    """As gunicorn's --preload forks its workers."""
    done = run([sys.executable, "-c", FORK, str(tiny)], tmp_path, OMP_NUM_THREADS="2")
    assert (done.returncode, done.stdout) == (0, "0 2\n"), done.stderr
