"""The command line as a process of its own: how fast it answers, signals, pipes, broken plugins."""

from __future__ import annotations

import io
import os
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

#: The installed program; without one, as Segue is on the path only, its module.
PROGRAM = Path(sys.executable).with_name("segue")
COMMAND = [str(PROGRAM)] if PROGRAM.exists() else [sys.executable, "-m", "segue"]
PLUGINS = Path(__file__).parent.parent / "plugin_fixtures"

#: Run one command after the other in one process; write their exit codes and heavy modules, among
#: them ``too many``: what takes long to import is made of hundreds of modules.
COMMANDS = """
import sys
from segue.apps.cli.main import main
heavy = {"torch", "torchaudio", "soundfile", "numpy", "sklearn", "matplotlib", "safetensors"}
heavy |= {"scipy", "pandas", "transformers", "huggingface_hub", "gradio", "fastapi", "lhotse"}
codes = []
for command in sys.argv[1:]:
    sys.argv = ["segue", *command.split()]
    try:
        main()
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code or 0)
found = sorted(heavy & set(sys.modules)) + ["too many"] * (len(sys.modules) > 800)
print(*codes, *found, file=sys.stderr)
"""

#: Stands in for a module that Ctrl-C interrupts; in the background SIGINT may be ignored.
INTERRUPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.raise_signal(signal.SIGINT)
"""

#: Says that generation begins, and by which threads, and lets it begin.
HOOK = """
import os, torch
from pathlib import Path
from segue.core.hookspecs import hookimpl

@hookimpl
def segue_before_generate(pipeline, request):
    Path("begun").write_text(f"{torch.get_num_threads()} {os.environ['OMP_WAIT_POLICY']}")
"""


def environment(**changes: str) -> dict[str, str]:
    # These processes find what is installed, and choose how threads wait.
    left_out = ("SEGUE_PLUGINS", "SEGUE_REGISTRY", "OMP_WAIT_POLICY")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
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


def run_in_turn(*commands: str, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", COMMANDS, *commands], folder, **changes)


def test_light_commands_import_nothing_heavy(tmp_path: Path) -> None:
    done = run_in_turn(
        "--help",
        "continue --help",
        "plugins list",
        "config validate speech",
        "config explain piano --json",
        folder=tmp_path,
    )
    assert done.stderr.splitlines() == ["0 0 0 0 0"]


def test_ctrl_c_leaves_nothing_of_a_process_with_the_threads_asked_for(
    tmp_path: Path, tiny: Path
) -> None:
    (tmp_path / "announcing_hook.py").write_text(HOOK)
    registry = tmp_path / "mine.yaml"
    registry.write_text("api_version: 1\nhooks: [announcing_hook]\n")
    folder = tmp_path / "place"
    folder.mkdir()
    arguments = ["generate", "-o", "new/out.wav", "--pipeline", str(tiny), "--seconds", "3600"]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(
            SEGUE_REGISTRY=str(registry),
            PYTHONPATH=str(tmp_path),
            SEGUE_THREADS="1",
            OMP_NUM_THREADS="2",
        ),
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
    assert (folder / "begun").read_text() == "1 PASSIVE"


def test_ctrl_c_while_modules_are_imported_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(INTERRUPT)
    done = run([*COMMAND, "doctor"], tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "command",
    [
        ("config", "explain", "speech"),
        pytest.param(("--help",), marks=pytest.mark.slow),  # printed by the same console
    ],
)
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, command: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [*COMMAND, *command],
            cwd=tmp_path,
            env=environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.stderr == ""


def test_a_terminal_that_lacks_letters(tmp_path: Path) -> None:
    done = run_in_turn("config show é", "plugins list", folder=tmp_path, PYTHONIOENCODING="ascii")
    error, codes = done.stderr.splitlines()
    assert r"error: \xe9: is not a domain" in error and codes == "2 0"
    assert "mel_kmeans.v1" in done.stdout


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


def test_audio_travels_through_pipes(
    segue: Segue, tiny: Path, prompt_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both pipes hold a short recording whole, so that nobody needs to read while it is written."""
    arguments = ("-p", tiny, "--seconds", 0.3)
    assert segue("continue", prompt_file, *arguments).code == 0
    (source, given), (result, taken) = os.pipe(), os.pipe()
    with os.fdopen(given, "wb") as file:
        file.write(prompt_file.read_bytes())
    with (
        os.fdopen(source) as stdin,
        os.fdopen(taken, "w") as stdout,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        assert segue("continue", "-", "-o", "-", *arguments).code == 0
    with os.fdopen(result, "rb") as file:
        piped, rate = soundfile.read(io.BytesIO(file.read()))
    assert rate == 16_000
    numpy.testing.assert_array_equal(piped, soundfile.read("continuation.wav")[0])


@pytest.mark.parametrize("command", [("config", "show", "nothing"), ("generate", "-p", "nothing")])
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


def test_a_number_of_threads_that_cannot_be_is_refused(segue: Segue) -> None:
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
