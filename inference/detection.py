"""Judge where audio of any length comes from, with a detector that is shipped or in a directory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE, Audio, resample
from segue.core.checkpoint import load_component
from segue.core.checkpoint_files import MANIFEST, read_manifest
from segue.core.errors import AudioError, CheckpointError
from segue.core.interfaces import ORIGINS, Detector
from segue.core.plugins import PluginHost
from segue.core.progress import Progress
from segue.core.records import PluginRecord
from segue.core.registry import FIRST_PARTY
from segue.inference.promises import calling, check_scores
from segue.sound.open_audio import open_audio

Verdict = Literal["real", "coded", "generated", "partly generated"]

LEAST_SECONDS = 0.5
BATCH = 64  # windows that are judged together
SURE_SECONDS = 2  # in a row that must sound generated before a recording counts as partly so


@dataclass(frozen=True)
class Judgement:
    """A detector's judgement of one piece of audio."""

    # ``partly generated`` if most of it is not, but some seconds in a row are: a recording that was
    # continued.
    verdict: Verdict
    # The mean of each of ``ORIGINS`` over the seconds that are not silent.
    probability: dict[str, float]
    seconds: Float[Tensor, "S 3"]  # ``[S, 3]``, for each second; NaN if it is silent


def judge(detector: Detector, audio: Audio, place: str = "audio") -> Judgement:
    """Judge audio of any length and rate, or raise ``AudioError`` if under 0.5 s or silent."""
    _check_length(audio.seconds, place)
    wave, rate = audio.wave, detector.config.sample_rate
    if audio.sample_rate != rate:
        wave = resample(wave, audio.sample_rate, rate)
    return _judged(_by_second(detector, lambda a, n: wave[a : a + n], len(wave)), place)


def judge_file(detector: Detector, path: Path, progress: Progress | None = None) -> Judgement:
    """Judge a file of any length, a part at a time, or raise ``AudioError``.

    Args:
        progress: called with the file and the seconds that are judged, of how many.
    """
    rate = detector.config.sample_rate
    with open_audio(path) as opened:
        _check_length(opened.length / opened.rate, str(path))
        length = opened.length_at(rate)

        def read(first: int, count: int) -> Float[Tensor, "T"]:
            whole = first // rate * rate  # reading begins on whole seconds
            return opened.read_at(rate, whole, first - whole + count)[first - whole :]

        report = None if progress is None else partial(progress, f"{path.name}: detector")
        return _judged(_by_second(detector, read, length, report), str(path))


def _check_length(seconds: float, place: str) -> None:
    if seconds < LEAST_SECONDS:
        fix = f"give at least {LEAST_SECONDS:g} s of audio"
        raise AudioError(place, f"lasts {seconds:.3f} s", fix)


def _judged(seconds: Float[Tensor, "S 3"], place: str) -> Judgement:
    known = seconds[~seconds[:, 0].isnan()]
    if not len(known):
        raise AudioError(place, "is silent", "name a file with sound in it")
    mean = known.mean(dim=0)
    verdict: Verdict = ORIGINS[int(mean.argmax())]  # type: ignore[assignment]
    if verdict != "generated" and _longest_run(seconds[:, 2] > 0.5) >= SURE_SECONDS:
        verdict = "partly generated"
    return Judgement(verdict, dict(zip(ORIGINS, mean.tolist(), strict=True)), seconds)


def _by_second(
    detector: Detector,
    read: Callable[[int, int], Float[Tensor, "T"]],
    length: int,
    report: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "S 3"]:
    """Judge a window around the middle of each second.

    Args:
        read: returns samples, given the first and their number.
        length: samples in all.
        report: called with the seconds that are judged next, of how many.
    """
    rate = detector.config.sample_rate
    window = min(round(detector.config.window_seconds * rate), length)
    # A last part of less than half a second belongs to the second before it.
    count = max(1, math.floor(length / rate + 0.5))
    starts = [
        max(0, min(round((second + 0.5) * rate) - window // 2, length - window))
        for second in range(count)
    ]
    found = torch.full((count, len(ORIGINS)), math.nan)
    for first in range(0, count, BATCH):
        if report is not None:
            report(min(first + BATCH, count), count)
        begins = starts[first : first + BATCH]
        wave = read(begins[0], begins[-1] - begins[0] + window)
        rows = [wave[start - begins[0] :][:window] for start in begins]
        audible = [i for i, row in enumerate(rows) if row.abs().max() > SILENCE]
        if not audible:
            continue
        batch = torch.stack([rows[i] for i in audible])
        lengths = torch.full((len(audible),), window)
        with torch.inference_mode(), calling(detector, "score"):
            scores = detector.score(batch.to(detector.device), lengths.to(detector.device))
        check_scores(detector, scores, (len(audible), len(ORIGINS)))
        found[[first + i for i in audible]] = scores.float().cpu()
    return found


def _longest_run(true: Tensor) -> int:
    return max((len(list(run)) for value, run in groupby(true.tolist()) if value), default=0)


def shipped(domain: str, host: PluginHost) -> Path:
    """Return the directory of a domain's shipped detector, or raise ``CheckpointError``.

    They lie in ``pretrained/<domain>`` beside the detector's module.
    """
    found: set[str] = set()
    # Segue's own first: no plugin replaces what ships, or disables it.
    for record in sorted(host.records("detector"), key=lambda each: each.source != FIRST_PARTY):
        folder = _pretrained_folder(record)
        if folder is None:
            continue
        if (folder / domain / MANIFEST).is_file():
            return folder / domain
        found |= {path.parent.name for path in folder.glob(f"*/{MANIFEST}")}
    names = ", ".join(sorted(found)) or "none"
    raise CheckpointError(
        domain,
        f"no detector ships weights for it (there are: {names})",
        "train one (`segue train-detector`) and name it: --detector DIR",
    )


def _pretrained_folder(record: PluginRecord) -> Path | None:
    try:  # the options' module, as it imports no torch
        file = import_module((record.config or record.target).partition(":")[0]).__file__
    except Exception:  # a plugin's code fails in any way
        return None
    return None if file is None else Path(file).parent / "pretrained"


def load_detector(directory: Path, host: PluginHost) -> Detector:
    """Load the detector of a directory, or raise ``CheckpointError``."""
    if read_manifest(directory).kind != "detector":
        raise CheckpointError(
            str(directory),
            "holds no detector",
            "name a directory that `segue train-detector` wrote",
        )
    detector = load_component(directory, host, "--detector")
    assert isinstance(detector, Detector)
    return detector
