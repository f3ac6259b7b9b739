"""Measure a codec on recordings: quality at each number of levels, use of its codes, speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from segue.core.audio import Audio, resample
from segue.core.config import PromptConfig
from segue.core.errors import AudioError, ConfigError, DataError
from segue.core.interfaces import AcousticCodec, Metric, Tokens
from segue.core.progress import Progress
from segue.core.spec import ACOUSTIC, TokenSpec
from segue.data.recordings import Recording
from segue.evaluation.failures import Failures, figures_of_pair, without
from segue.evaluation.statistics import entropy, summarise
from segue.evaluation.subjects import usable
from segue.inference.bars import tracked
from segue.inference.transcoder import Transcoder


def evaluate_codec(
    codec: AcousticCodec,
    limits: PromptConfig,
    recordings: Sequence[Recording],
    metrics: Mapping[str, Metric],
    levels: Sequence[int],
    progress: Progress | None = None,
    sample_rate: int | None = None,
) -> dict[str, Any]:
    """Encode each recording once and decode it with each number of levels.

    Args:
        limits: how much of a recording is used, and the level it is brought to.
        recordings: those that cannot be used are counted.
        sample_rate: that metrics listen at, so that codecs of several rates can be compared; None:
            the codec's own.

    Returns:
        ``levels``: per number of levels kbit/s, speed and, per metric, an estimate over recordings
        with the recording that is worst. ``codebooks``: see ``CodebookUse``. ``speed`` figures are
        seconds of audio per second of computing. ``failed``: why metrics have no figures.

    Raises:
        ConfigError: if the codec has not so many levels, or a lower sample rate.
        DataError: if no recording can be used.
    """
    spec = codec.spec
    for count in levels:
        if not 1 <= count <= spec.num_levels:
            raise ConfigError("levels", f"{count} is out of range", f"use 1 to {spec.num_levels}")
    rate = sample_rate or spec.sample_rate
    if rate > spec.sample_rate:
        raise ConfigError(
            "sample_rate",
            f"is {rate}, above the codec's",
            f"use at most {spec.sample_rate}, or the lowest of the codecs that you compare",
        )
    passage = _Passage(Transcoder(codec, None, {ACOUSTIC: spec}, limits), metrics, levels, rate)
    for recording in tracked(recordings, "codec", progress):
        passage.take(recording)
    if not passage.seconds:
        raise DataError("recordings", "none can be used", "check the data")
    return passage.figures()


@dataclass
class _Passage:
    """Take recordings through the codec and measure on the way."""

    audio: Transcoder
    metrics: Mapping[str, Metric]
    levels: Sequence[int]
    rate: int
    rows: dict[int, list[dict[str, float]]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    clock: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    unusable: int = 0
    failed: Failures = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = {count: [] for count in self.levels}
        self.use = CodebookUse(self.audio.codec.spec)

    def take(self, recording: Recording) -> None:
        found = usable(recording, self.audio.limits)
        try:
            prompts = [] if found is None else self.audio.prepared([found], whole_units=False)
        except AudioError:
            prompts = []
        if not prompts:
            self.unusable += 1
            return
        if not self.seconds:  # what is computed first takes longer
            self._decode(self._encode(prompts[0]), self.levels[0], prompts[0])
            self.clock.clear()
        self.seconds += prompts[0].seconds
        self.paths.append(recording.place)
        self._measure(prompts[0])

    def _measure(self, reference: Audio) -> None:
        codes = self._encode(reference)
        self.use.add(codes)
        heard = resample(reference.wave, reference.sample_rate, self.rate)
        for count in self.levels:
            coded = self._decode(codes, count, reference)
            wave = resample(coded.wave, coded.sample_rate, self.rate)
            found = figures_of_pair(self.metrics, heard, wave, self.rate, self.failed)
            self.rows[count].append(found)

    def _encode(self, reference: Audio) -> Tokens:
        gains = self.audio.gains([reference])
        started = time.perf_counter()
        codes = self.audio.encode_stream(ACOUSTIC, [reference], gains)
        self._spent("encode", started)
        return codes

    def _decode(self, codes: Tokens, count: int, reference: Audio) -> Audio:
        started = time.perf_counter()
        wave = self.audio.decode(codes.levels(0, count))[0, : reference.wave.shape[0]]
        self._spent(f"decode {count}", started)
        return Audio(wave / self.audio.gains([reference]), reference.sample_rate)

    def _spent(self, what: str, started: float) -> None:
        if self.audio.codec.device.type == "cuda":  # what was asked of it may not be done yet
            torch.cuda.synchronize(self.audio.codec.device)
        self.clock[what] = self.clock.get(what, 0.0) + time.perf_counter() - started

    def figures(self) -> dict[str, Any]:
        return {
            "recordings": len(self.paths),
            "unusable": self.unusable,
            "seconds": round(self.seconds, 3),
            "encode_speed": round(self.seconds / self.clock["encode"], 2),
            "metrics": {
                name: {"unit": metric.unit, "higher_is_better": metric.higher_is_better}
                for name, metric in self.metrics.items()
                if name not in self.failed
            },
            "failed": self.failed,
            "levels": {str(count): self._level(count) for count in self.levels},
            "codebooks": self.use.figures(),
        }

    def _level(self, count: int) -> dict[str, Any]:
        rows = without(self.rows[count], self.failed)
        found = summarise(rows)
        for name in found:
            if found[name]["count"]:
                edge = "lowest" if self.metrics[name].higher_is_better else "highest"
                values = [row[name] for row in rows]
                found[name]["worst"] = self.paths[values.index(found[name][edge])]
        return {
            "kbit_per_second": kbit_per_second(self.audio.codec.spec, count),
            "decode_speed": round(self.seconds / self.clock[f"decode {count}"], 2),
            **found,
        }


def kbit_per_second(spec: TokenSpec, levels: int) -> float:
    """Return the bit rate with whole bits per code, as many as the codebook needs."""
    bits = float(spec.frame_rate) * (spec.codebook_size - 1).bit_length() / 1000
    return round(bits * levels, 3)


class CodebookUse:
    """Count every code of every level: ``counts`` is ``[Q, V]``."""

    def __init__(self, spec: TokenSpec) -> None:
        self.counts = torch.zeros(spec.num_levels, spec.codebook_size, dtype=torch.long)
        self.frame_rate = float(spec.frame_rate)

    def add(self, tokens: Tokens) -> None:
        for row in tokens.rows():
            for level, ids in enumerate(row.cpu()):
                self.counts[level] += torch.bincount(ids, minlength=self.counts.shape[1])

    def figures(self) -> list[dict[str, Any]]:
        """Return, per level, the share of codes that occurred, perplexity as a share of the
        codebook size, and the kbit/s by entropy: what is left when codes are coded by their
        frequency.

        With few frames there can be no high share: at most ``frames / V`` codes occurred.
        """
        found = []
        for level, counts in enumerate(self.counts):
            bits = entropy(counts) if counts.any() else 0.0
            found.append(
                {
                    "level": level,
                    "used": int((counts > 0).sum()) / len(counts),
                    "perplexity": 2**bits / len(counts),
                    "entropy_kbit_per_second": bits * self.frame_rate / 1000,
                    "frames": int(counts.sum()),
                }
            )
        return found
