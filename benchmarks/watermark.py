"""Measure how often the watermark is found, and what it costs.

    python benchmarks/watermark.py FOLDER [--items 60] [--seconds 3]

Takes one stretch from the middle of each audio file in a folder, marks it, and looks for the mark
in the stretch as it was (false alarms) and as marked (detections), after each disturbance.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torchaudio.functional import highpass_biquad

from segue.core.audio import resample
from segue.plugins.provenance.spread import Watermark
from segue.plugins.provenance.watermark import MARKED


def mp3(wave: Tensor, rate: int, kbit: int) -> Tensor:
    """Return audio as it comes back from an MP3 of constant bit rate."""
    least, most = (8, 160) if rate < 32_000 else (32, 320)
    file = io.BytesIO()
    mode = {"bitrate_mode": "CONSTANT", "compression_level": (most - kbit) / (most - least)}
    soundfile.write(file, wave.numpy(), rate, format="MP3", subtype="MPEG_LAYER_III", **mode)
    file.seek(0)
    return torch.from_numpy(soundfile.read(file, dtype="float32")[0])


def through(wave: Tensor, rate: int, other: int) -> Tensor:
    """Resample audio to another rate and back."""
    return resample(resample(wave, rate, other), other, rate)


def highpass(wave: Tensor, rate: int) -> Tensor:
    return highpass_biquad(highpass_biquad(wave, rate, 1000.0), rate, 1000.0)


DISTURBANCES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "nothing": lambda wave, rate: wave,
    "MP3 at 64 kbit/s": lambda wave, rate: mp3(wave, rate, 64),
    "MP3 at 32 kbit/s": lambda wave, rate: mp3(wave, rate, 32),
    "resampled to 8 kHz and back": lambda wave, rate: through(wave, rate, 8_000),
    "resampled to 24 kHz and back": lambda wave, rate: through(wave, rate, 24_000),
    "high-pass at 1 kHz": highpass,
    "one second of it": lambda wave, rate: wave[len(wave) // 2 :][:rate],
    "noise, 20 dB lower": lambda wave, rate: wave + torch.randn_like(wave) * wave.std() / 10,
    "10 % slower": lambda wave, rate: resample(wave, rate, round(rate * 1.1)),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--seconds", type=int, default=3)
    asked = parser.parse_args()
    paths = sorted(path for path in asked.folder.rglob("*") if path.suffix in (".wav", ".flac"))
    random.Random(1).shuffle(paths)
    torch.manual_seed(0)
    watermark, items = Watermark("segue"), []
    for path in paths:
        about = soundfile.info(path)
        count = asked.seconds * about.samplerate
        if about.frames < count:
            continue
        cut = {"start": (about.frames - count) // 2, "frames": count}
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True, **cut)
        items.append((torch.from_numpy(wave[:, 0].copy()), rate))
        if len(items) == asked.items:
            break
    if not items:
        parser.error(f"{asked.folder} holds no WAV or FLAC file of {asked.seconds} s")
    marked = [(watermark.mark(wave, rate), rate) for wave, rate in items]
    ratios = [
        float(10 * (wave.square().sum() / (new - wave).square().sum()).log10())
        for (wave, _), (new, _) in zip(items, marked, strict=True)
    ]
    level = sum(ratios) / len(ratios)
    print(f"{len(items)} items of {asked.seconds} s, signal to mark {level:.1f} dB")
    print("| after | found | false alarms | lowest score, marked | highest, not marked |")
    for name, disturb in DISTURBANCES.items():
        with_mark, without = (
            [watermark.score(disturb(wave, rate), rate) for wave, rate in waves]
            for waves in (marked, items)
        )
        found, wrong = (sum(score > MARKED for score in each) for each in (with_mark, without))
        print(f"| {name} | {found} | {wrong} | {min(with_mark):.1f} | {max(without):.1f} |")


if __name__ == "__main__":
    main()
