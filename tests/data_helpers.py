"""What tests of data share: recordings that tell where they are, tokenizers that read it off."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy
import soundfile
import torch

from segue.core.interfaces import Tokenizer, Tokens
from segue.core.options import TokenizerOptions
from segue.core.spec import SliceSpec, StageSpec, TokenSpec
from segue.data import prepare, scan
from segue.data.recordings import Recording, Split
from segue.data.sources import read_recordings
from segue.data.store_writer import write_store
from segue.data.token_store import TokenStore

RATE = 16_000


def write_wave(path: Path, seconds: float, level: float = 0.1, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, numpy.full(round(seconds * rate), level, numpy.float32), rate)
    return path


def into_a_directory(path: Path) -> None:
    """In place of a file: it cannot be read, whoever tries."""
    path.unlink()
    path.mkdir()


def manifest(folder: Path, *lines: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recording(path: Path, seconds: float, group: str = "g") -> Recording:
    return Recording(path, seconds, group, "train")


def ramp(path: Path, seconds: float) -> Recording:
    """A recording whose every sample tells where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, numpy.arange(round(seconds * RATE), dtype=numpy.int16), RATE)
    return recording(path, seconds)


STEP = 0.02  # the level changes so often
SCALE = 8000
GROUP = 1000  # steps per group


class ClockOptions(TokenizerOptions):
    sample_rate: int = RATE
    frame_rate: int = 50
    num_levels: int = 1

    def spec(self) -> TokenSpec:
        return TokenSpec(self.sample_rate, Fraction(self.frame_rate), self.num_levels, SCALE)


class Clock(Tokenizer):
    """Every level's id is the step in which its frame begins."""

    config: ClockOptions
    needs_training = False
    calls = 0

    def encode(self, wave: torch.Tensor, lengths: torch.Tensor) -> Tokens:
        self.calls += 1
        size = self.spec.frame_size
        assert int(lengths.max()) % size == 0
        samples = wave[:, size // 8 :: size]  # inside the frame's first step
        ids = (samples * SCALE).round().long()[:, None].expand(-1, self.spec.num_levels, -1)
        return Tokens(ids, lengths // size)


def clock(**options: int) -> Clock:
    made = Clock(ClockOptions(**options))
    made.seal("clock.v1")
    return made


def clocks(semantic_rate: int = RATE) -> dict[str, Tokenizer]:
    return {
        "semantic": clock(frame_rate=25, sample_rate=semantic_rate),
        "acoustic": clock(frame_rate=50, num_levels=4),
    }


def timed(folder: Path, group: int, name: str, first: int, steps: float) -> Recording:
    """A recording of a group that holds the steps from ``first`` on."""
    samples = numpy.arange(round(steps * STEP * RATE)) // round(STEP * RATE)
    path = folder / f"{name}.wav"
    soundfile.write(path, (group * GROUP + first + samples) / SCALE, RATE, subtype="FLOAT")
    return Recording(path, steps * STEP, f"group{group}", "train")


def clock_recordings(folder: Path) -> dict[Split, list[Recording]]:
    folder.mkdir()
    return {
        "train": [
            timed(folder, 0, "a", 0, 120),
            timed(folder, 1, "b", 0, 30.7),
            timed(folder, 1, "c", 100, 25),
            timed(folder, 2, "too short", 0, 1.9),
            recording(folder / "missing.wav", 1.0),
            timed(folder, 3, "d", 0, 12),
            timed(folder, 1, "e", 200, 44.3),
        ],
        "valid": [timed(folder, 4, "f", 0, 61), timed(folder, 5, "g", 0, 20)],
    }


def contents(directory: Path) -> dict[str, bytes]:
    """Every file by name, without what a killed run left."""
    paths = sorted(directory.iterdir())
    return {path.name: path.read_bytes() for path in paths if path.name[0] != "."}


def bound(store: TokenStore, text: str, **changes: object) -> SliceSpec:
    """A slice of the store's own tokens: ``semantic`` or ``acoustic 0 2``."""
    stream, *levels = text.split()
    spec = store.streams[stream]
    start, stop = map(int, levels or (0, spec.num_levels))
    values = {"codebook_size": spec.codebook_size, "frame_rate": spec.frame_rate,
              "fingerprint": spec.fingerprint} | changes  # fmt: skip
    return SliceSpec(stream, start, stop, **values)  # type: ignore[arg-type]


def stage(store: TokenStore, target: str, *given: str) -> StageSpec:
    return StageSpec("fine", bound(store, target), tuple(bound(store, text) for text in given))


def slow_store(listed: Path, directory: Path) -> None:
    """Tokenize a manifest, in many small shards and with time to be killed."""

    class Slow(Clock):
        def encode(self, wave: torch.Tensor, lengths: torch.Tensor) -> Tokens:
            time.sleep(0.005)
            return super().encode(wave, lengths)

    semantic = Slow(ClockOptions(frame_rate=25))
    semantic.seal("clock.v1")
    tokenizers = {"semantic": semantic, "acoustic": clock(num_levels=4)}
    write_store(directory, tokenizers, {"train": read_recordings(listed)}, shard_seconds=1.0)


def slow_prepare(source: Path, output: Path) -> None:
    """Prepare a folder, in small pieces and with time to be killed."""
    chunk, listen = scan.CHUNK, scan.listen

    def slow_listen(recording: Recording, min_seconds: float) -> scan.Heard:
        time.sleep(0.003)
        return listen(recording, min_seconds)

    scan.CHUNK = prepare.CHUNK = 20
    scan.listen = slow_listen
    try:
        prepare.prepare_files(source, output)
    finally:
        scan.CHUNK = prepare.CHUNK = chunk
        scan.listen = listen


def killed_again_and_again(work: Callable[[Path, Path], None], source: Path, target: Path) -> int:
    """Run ``work`` in processes of its own that are killed (SIGKILL) at random moments, until one
    ends by itself; how many were killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.data_helpers"])
    random, kills = numpy.random.default_rng(0), 0
    while True:
        process = context.Process(target=work, args=(source, target))
        process.start()
        # Ever longer: on a busy machine no process would come to the end of its last piece.
        process.join(timeout=0.1 + random.random() * 0.15 + kills * 0.005)
        if process.exitcode is not None:
            assert process.exitcode == 0
            return kills
        process.kill()
        process.join()
        kills += 1
        assert kills < 300
