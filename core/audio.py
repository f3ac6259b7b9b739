"""Convert and write audio. Inside Segue audio is mono float32 in [-1, 1]."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import soundfile
from jaxtyping import Float
from torch import Tensor

from segue.core.errors import AudioError, OutputError
from segue.core.files import atomic_path, native
from segue.core.memory import shortage
from segue.core.moved import forward

SILENCE = 1e-4  # peak below which audio counts as silent (-80 dB)
CANCELLED = 0.1  # of the channels' peak: a mean below it shows that they cancel each other
# SD2 keeps its sample rate in a second file, which would stay behind; the others lose it.
UNFIT_FORMATS = {"SD2", "HTK", "SDS", "WVE", "XI"}
WRITTEN_AT_ONCE = 1 << 16  # samples
COMMON = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff")  # suffixes to suggest
LARGE = 1 << 24  # samples: memory is checked before more are made
RESAMPLE_TERMS = 4_000_000  # largest product of the two terms of a resampling ratio


@dataclass(frozen=True)
class Audio:
    """Mono audio.

    Attributes:
        wave: ``[T]``.
        sample_rate: samples per second.
        notes: changes made on the way (mixed, resampled, ...), for the user.
    """

    wave: Float[Tensor, "T"]
    sample_rate: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Audio({self.seconds:.2f} s at {self.sample_rate} Hz)"

    @property
    def seconds(self) -> float:
        return self.wave.shape[0] / self.sample_rate


def to_mono(wave: Float[Tensor, "C T"]) -> tuple[Float[Tensor, "T"], str]:
    """Return the mean of the channels, and a note that says so."""
    if wave.shape[0] == 1:
        return wave[0], ""
    mono, mixed = wave.mean(dim=0), f"mixed {wave.shape[0]} channels to mono"
    if not mono.numel():
        return mono, mixed
    left, peak = float(mono.abs().max()), float(wave.abs().max())
    if left > peak:  # the sum of the channels is too large for a float32
        mono = wave.double().mean(dim=0).to(wave.dtype)
        left = float(mono.abs().max())
    # Channels that cancel each other (one inverted) would leave silence: take the loudest.
    if left < SILENCE <= peak:
        loudest = int(wave.abs().amax(dim=1).argmax())
        return wave[loudest], f"took channel {loudest + 1} of {wave.shape[0]}: their mean is silent"
    if left < CANCELLED * peak:
        mixed += ": they almost cancel out, so one of them alone would sound better"
    return mono, mixed


def resample(wave: Float[Tensor, "*B T"], source: int, target: int) -> Float[Tensor, "*B U"]:
    """Resample band-limited audio (windowed sinc), or raise ``AudioError`` for want of memory."""
    import torchaudio.functional  # slow to import, and most prompts have the right rate

    samples = wave.numel() * max(target, source) // source
    problem = shortage(2 * 4 * samples) if samples > LARGE else None
    if problem is not None:
        seconds = f"{wave.shape[-1] / source:,.0f} s at {target} Hz"
        raise AudioError("audio", f"of {seconds} {problem}", "give shorter audio")
    # The filter grows with the terms of the ratio, to gigabytes for 44101 Hz. The nearest simpler
    # ratio is less than a cent off.
    limit = max(1, math.isqrt(RESAMPLE_TERMS * target // source))
    ratio = Fraction(source, target).limit_denominator(limit)
    return torchaudio.functional.resample(wave, ratio.numerator, ratio.denominator)


def write_audio(path: Path | str, wave: Float[Tensor, "T"], sample_rate: int) -> None:
    """Write a mono file atomically; the suffix chooses the format (WAV is 16-bit).

    Samples outside [-1, 1] are clipped.

    Raises:
        OutputError: if it cannot be written there or in that format.
        AudioError: if libsndfile cannot write a format of that suffix.
    """
    with open_writer(path, sample_rate) as write:
        write(wave)


@contextmanager
def open_writer(
    path: Path | str, sample_rate: int
) -> Iterator[Callable[[Float[Tensor, "T"]], None]]:
    """Yield a function that writes further samples to a file; see ``write_audio``."""
    path = Path(path)
    check_format(path)
    kind, subtype = _format(path)
    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(
                native(temporary), "w", sample_rate, 1, subtype, format=kind
            ) as file:
                yield lambda wave: write_samples(file, wave)
        except soundfile.LibsndfileError as error:
            raise OutputError(
                str(path),
                f"cannot be written at {sample_rate} Hz ({error.error_string.rstrip('.')})",
                "check the free space, or use .wav",
            ) from error


def write_samples(file: soundfile.SoundFile, wave: Float[Tensor, "T"]) -> None:
    """Write samples to an open file, clipped to [-1, 1]."""
    data = wave.detach().float().clamp(-1.0, 1.0).cpu()
    # Block by block: libsndfile crashes on a minute of Vorbis at once.
    for block in data.split(WRITTEN_AT_ONCE):
        file.write(pcm16(block) if file.subtype == "PCM_16" else block.numpy())


def pcm16(wave: Float[Tensor, "T"]) -> numpy.ndarray[Any, numpy.dtype[numpy.int16]]:
    """Round samples to 16 bits: reading them again is exact. libsndfile would round down."""
    rounded = (wave.detach().float().cpu() * 32768).round().clamp(-32768, 32767)
    return numpy.asarray(rounded.short().numpy())


def encoded_audio(
    wave: Float[Tensor, "T"], sample_rate: int, kind: str = "WAV", subtype: str = "PCM_16"
) -> bytes:
    """Return a mono file in a format, or raise the ``LibsndfileError`` that it cannot hold it."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", sample_rate, 1, subtype, format=kind) as writer:
        write_samples(writer, wave)
    return file.getvalue()


def check_format(path: Path) -> None:
    """Raise ``AudioError`` if audio cannot be written under this suffix."""
    if _format(path)[1] is None:
        problem = f"the suffix {path.suffix!r} names no audio format"
        fit = [suffix for suffix in COMMON if _format(Path(f"file{suffix}"))[1] is not None]
        raise AudioError(str(path), problem, f"use one of {', '.join(fit)}")


def _format(path: Path) -> tuple[str, str | None]:
    """Return libsndfile's names of format and encoding; None for a format it cannot write."""
    suffix = path.suffix.lower().lstrip(".")
    if suffix == "opus":
        return "OGG", "OPUS"
    kind = {"oga": "OGG", "aif": "AIFF"}.get(suffix, suffix.upper())
    writable = kind in soundfile.available_formats() and kind not in UNFIT_FORMATS
    return kind, soundfile.default_subtype(kind) if writable else None


def __getattr__(name: str) -> object:
    if name == "read_audio":
        return forward(f"{__name__}.{name}", "segue.sound.reading")(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
