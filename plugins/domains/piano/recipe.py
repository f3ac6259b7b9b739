"""Render piano scores (MIDI) to recordings, with a manifest for training.

Rendering needs the programs FluidSynth and a General MIDI soundfont (Debian: ``fluidsynth``,
``fluid-soundfont-gm``). A folder of recorded piano needs no recipe: name it as ``--data``.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import soundfile

from segue.core.errors import DataError
from segue.core.files import atomic_path
from segue.core.progress import Progress
from segue.data.recipe import check_folder, read_rows, write_manifest

SOUNDFONTS = (
    Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"),
    Path("/usr/share/soundfonts/FluidR3_GM.sf2"),
    Path("/usr/share/sounds/sf2/default-GM.sf2"),
)
SAMPLE_RATE = 16_000
GAINS = (0.35, 0.5, 0.7)  # playing level varies from piece to piece, as recordings do


SUFFIXES = (".mid", ".midi")


def prepare(source: Path, output: Path, progress: Progress | None = None) -> Path:
    """Render MIDI files to FLAC, once, and write a manifest.

    Args:
        source: folder of MIDI files, at any depth. If it holds ``manifest.csv``, only the files in
            its column ``path`` are rendered, and a column ``split`` says which are held out.
        output: folder for ``audio/`` and ``manifest.csv``; files already rendered are kept.

    Returns:
        The path of the manifest. Without a column ``split``, Segue holds out some of the pieces.
    """
    check_folder(source, "MIDI files (.mid, .midi)")
    rows = _listed(source)
    font = find_soundfont()
    audio = output / "audio"
    targets = [audio / f"{row['name']}.flac" for row in rows]
    if len(set(targets)) < len(targets):
        twice = next(row["name"] for row, to in zip(rows, targets, strict=True)
                     if targets.count(to) > 1)  # fmt: skip
        raise DataError(str(source), f"lists two files called {twice!r}", "rename one of them")
    jobs = [
        (source / row["path"], target)
        for row, target in zip(rows, targets, strict=True)
        if not target.exists()
    ]
    _render_all(jobs, font, progress)
    manifest = [
        {
            "path": target.resolve(),
            **({"split": row["split"]} if "split" in row else {}),
            "group": row["name"],
            "duration_s": round(soundfile.info(target).duration, 3),
        }
        for row, target in zip(rows, targets, strict=True)
    ]
    return write_manifest(output / "manifest.csv", manifest)


def _listed(source: Path) -> list[dict[str, str]]:
    """Return path, name and, if it is known, split of every MIDI file."""
    table = source / "manifest.csv"
    if table.is_file():
        rows = read_rows(table, ("path",))
        return [{**row, "name": Path(row["path"]).stem} for _, row in rows]
    paths = [path.relative_to(source) for path in sorted(source.rglob("*"))]
    found = [
        {"path": str(path), "name": str(path.with_suffix(""))}
        for path in paths
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        fix = "name a folder of MIDI files (.mid, .midi); recorded piano needs no recipe: --data"
        raise DataError(str(source), "holds no MIDI file", fix)
    return found


def find_soundfont() -> Path:
    """Return the soundfont to render with, or raise ``DataError`` if FluidSynth is missing."""
    font = next((path for path in SOUNDFONTS if path.exists()), None)
    if shutil.which("fluidsynth") is None or font is None:
        raise DataError(
            "fluidsynth",
            "the program or its soundfont is not installed",
            "install both (Debian: apt-get install fluidsynth fluid-soundfont-gm)",
        )
    return font


def render(midi: Path, target: Path, font: Path) -> None:
    """Render one MIDI file to mono FLAC at 16 kHz, scaled to a peak of at most 0.95."""
    gain = GAINS[int(hashlib.sha256(midi.name.encode()).hexdigest(), 16) % len(GAINS)]
    if not midi.is_file():
        raise DataError(str(midi), "does not exist", "check the manifest")
    target.parent.mkdir(parents=True, exist_ok=True)
    raw = target.with_suffix(".render.wav")
    command = ["fluidsynth", "-ni", "-q", "-g", str(gain), "-r", str(SAMPLE_RATE), "-F", str(raw)]
    try:
        done = subprocess.run([*command, str(font), str(midi)], capture_output=True, check=False)
        if done.returncode != 0 or not raw.exists():
            problem = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise DataError(str(midi), f"cannot be rendered ({problem})", "check the file")
        data, rate = soundfile.read(raw, dtype="float32", always_2d=True)
        mono = data.mean(axis=1)
        mono *= min(1.0, 0.95 / max(1e-9, float(abs(mono).max())))
        with atomic_path(target) as temporary:
            soundfile.write(temporary, mono, rate, format="FLAC", subtype="PCM_16")
    finally:
        raw.unlink(missing_ok=True)


def _render_all(jobs: Sequence[tuple[Path, Path]], font: Path, progress: Progress | None) -> None:
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = [pool.submit(render, midi, target, font) for midi, target in jobs]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            if progress is not None:
                progress("render", done, len(jobs))
