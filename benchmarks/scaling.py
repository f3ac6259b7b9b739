"""How time and memory grow with the work: each figure is a ratio within one run.

    python benchmarks/scaling.py [--json FILE] [--minutes 6] [--seconds 4] [--hours 1] [--only NAME]

``reading``, ``detect``, ``fit`` and ``mp3`` compare files of ``--minutes`` with files ten times as
long (6 minutes against an hour), ``continue`` continuations of ``--seconds`` with ten times as
much, ``store`` tokens of ``--hours`` with a hundred times as many; ``data_and_training.py`` has
one process that tokenizes and two. Peak memory is that of a process of its own. Ten times the work
takes ten times as long, or less, and memory stays as it is (1). Other work on the machine disturbs
times, not memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import soundfile
import torch

from benchmarks.report import Report
from benchmarks.timing import machine, peak_memory_mib
from segue.sound.mpeg import find_frames

FACTOR = 10
RATE, CHANNELS = 44_100, 2
CROPS = 8  # that a step of training on audio draws


# --- what the processes of their own do -------------------------------------------------------


def child_reading(folder: Path, _: float) -> None:
    """Read a file block by block at another rate, as `segue tokenize` does."""
    from segue.sound.open_audio import open_audio

    with open_audio(folder / "a.wav") as opened:
        assert sum(len(block) for block in opened.blocks_at(16_000))


def child_mp3(folder: Path, _: float) -> None:
    """Draw five batches of crops."""
    from segue.data.audio_crops import AudioCrops
    from segue.data.sources import read_recordings

    crops = AudioCrops(read_recordings(folder), 16_000, 1.0, CROPS, 0)
    for step in range(5):
        crops.batch(step)


def child_detect(folder: Path, _: float) -> None:
    from segue.core.plugins import default_host
    from segue.inference.detection import judge_file, load_detector, shipped

    host = default_host()
    judge_file(load_detector(shipped("speech", host), host), folder / "a.wav")


def child_fit(folder: Path, _: float) -> None:
    """Fit the clusters of mel cepstra to a file."""
    from segue.data.audio_crops import whole_recordings
    from segue.data.sources import read_recordings
    from segue.plugins.tokenizers.mel_kmeans.config import MelKMeansOptions
    from segue.plugins.tokenizers.mel_kmeans.model import MelKMeansTokenizer

    tokenizer = MelKMeansTokenizer(MelKMeansOptions())
    tokenizer.fit(whole_recordings(read_recordings(folder), 16_000, 30.0))


def child_continue(_: Path, audio_seconds: float) -> None:
    from segue import Pipeline

    Pipeline.from_pretrained("speech").generate(audio_seconds)


def child_store(folder: Path, _: float) -> None:
    """Open a store and draw one batch."""
    from segue.core.spec import SliceSpec, StageSpec
    from segue.data.token_crops import TokenCrops
    from segue.data.token_store import TokenStore

    store = TokenStore(folder / "store", "train")
    spec = store.streams["semantic"]
    target = SliceSpec(
        "semantic", 0, 1, spec.codebook_size, spec.frame_rate, spec.fingerprint
    )  # fmt: skip
    TokenCrops(store, StageSpec("semantic", target, ()), 10.0, CROPS, 0).batch(0)


# --- inputs -----------------------------------------------------------------------------------


def long_file(path: Path, minutes: float) -> None:
    """Write noise that swells: stereo at 44.1 kHz, in the format of the suffix."""
    draws = np.random.default_rng(0)
    second = 0.1 * draws.standard_normal((RATE, CHANNELS), dtype=np.float32)
    with soundfile.SoundFile(path, "w", RATE, CHANNELS) as file:
        for number in range(round(minutes * 60)):
            file.write(second * (0.1 + 0.09 * (number % 10)))


def long_mp3(path: Path, minutes: float) -> None:
    """Write the same minute again and again, without a table of contents."""
    long_file(path, 1)
    with path.open("rb") as file:
        found = find_frames(file)
        assert found is not None
        file.seek(found.offsets[0])
        minute = file.read()
    with path.open("wb") as file:
        for _ in range(round(minutes)):
            file.write(minute)


def long_store(folder: Path, hours: float) -> None:
    """Write random tokens in recordings of ten seconds, as `segue tokenize` stores them."""
    from fractions import Fraction

    from segue.core.interfaces import Tokenizer, Tokens
    from segue.core.options import TokenizerOptions
    from segue.core.spec import TokenSpec
    from segue.data.recordings import Recording
    from segue.data.store_writer import write_store

    class NoiseOptions(TokenizerOptions):
        def spec(self) -> TokenSpec:
            return TokenSpec(1000, Fraction(25), 1, 512)

    class Noise(Tokenizer):
        needs_training = False

        def encode(self, wave: torch.Tensor, lengths: torch.Tensor) -> Tokens:
            frames = lengths // self.spec.frame_size
            return Tokens(torch.randint(512, (len(wave), 1, int(frames.max()))), frames)

    tokenizer = Noise(NoiseOptions())
    tokenizer.seal("noise.v1")
    soundfile.write(folder / "a.wav", np.full(10_000, 0.1, np.float32), 1000)
    recordings = [
        Recording(folder / "a.wav", 10.0, f"{number}", "train", start=0.0)
        for number in range(round(hours * 360))
    ]
    write_store(folder / "store", {"semantic": tokenizer}, {"train": recordings})


# --- what is compared -------------------------------------------------------------------------


def growth(
    report: Report, name: str, sizes: tuple[float, ...], prepare: Callable[[Path, float], object]
) -> None:
    """Run a child on each size; print how time and memory grow against the work."""
    times, peaks = [], []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), size)
            command = [sys.executable, __file__, "--child", name, "--folder", folder]
            command += ["--seconds", str(size)]
            started = time.perf_counter()
            peaks.append(peak_memory_mib(command))
            times.append(time.perf_counter() - started)
        report.note(f"{name}_{size:g}_time", times[-1], "s")
        report.note(f"{name}_{size:g}_memory", peaks[-1], "MiB")
    work = sizes[-1] / sizes[0]
    report.ratio(f"{name}_time", times[-1] / times[0], f"time for {work:g} times the work")
    report.ratio(f"{name}_memory", peaks[-1] / peaks[0], "peak memory, goal 1")


CHILDREN = {
    name.removeprefix("child_"): call for name, call in list(globals().items())
    if name.startswith("child_")
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--minutes", type=float, default=6.0, help="of the shorter recordings")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the shorter continuation")
    parser.add_argument("--hours", type=float, default=1.0, help="of the smallest token store")
    parser.add_argument("--only", choices=CHILDREN, help="one comparison")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        torch.set_num_threads(1)
        CHILDREN[arguments.child](arguments.folder, arguments.seconds)
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    report = Report()
    short, much = arguments.minutes, arguments.seconds
    wave = lambda folder, size: long_file(folder / "a.wav", size)  # noqa: E731
    comparisons: dict[str, Callable[[], None]] = {
        name: (lambda name=name: growth(report, name, (short, FACTOR * short), wave))  # type: ignore[misc]
        for name in ("reading", "detect", "fit")
    }
    comparisons["mp3"] = lambda: growth(
        report, "mp3", (short, FACTOR * short),
        lambda folder, size: long_mp3(folder / "a.mp3", size),
    )  # fmt: skip
    comparisons["store"] = lambda: growth(
        report, "store", tuple(arguments.hours * n for n in (1, FACTOR, FACTOR**2)), long_store
    )
    comparisons["continue"] = lambda: growth(
        report, "continue", (much, FACTOR * much), lambda folder, size: None
    )
    for name, compare in comparisons.items():
        if arguments.only in (None, name):
            compare()
    report.write(arguments.json)


if __name__ == "__main__":
    main()
