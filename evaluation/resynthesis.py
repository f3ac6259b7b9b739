"""Measure what recordings keep that go through tokens and back: content, voice, sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from segue.core.audio import Audio
from segue.core.errors import AudioError, DataError
from segue.core.interfaces import Metric
from segue.core.metrics import Continuation, ContinuationMetric
from segue.core.progress import Progress
from segue.data.recordings import Recording
from segue.evaluation.continuations import measured
from segue.evaluation.failures import Failures, figures_of_pair, without
from segue.evaluation.statistics import grouped_summary
from segue.evaluation.subjects import usable
from segue.inference.bars import tracked
from segue.inference.pipeline import Pipeline

Way = Literal["acoustic_generation", "semantic", "codec", "recording", "foreign"]
ABOUT_RECORDINGS = ("truth_", "prompt_")
WAYS: tuple[Way, ...] = get_args(Way)


def evaluate_resynthesis(
    pipeline: Pipeline,
    recordings: Sequence[Recording],
    ways: Sequence[Way],
    pair_metrics: Mapping[str, Metric],
    set_metrics: Mapping[str, ContinuationMetric],
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Take recordings through tokens and back, and compare the results with them.

    Args:
        ways: ``acoustic_generation`` draws acoustic tokens given the recording's semantic ones;
            ``semantic`` takes the likeliest ones; ``codec`` keeps the acoustic tokens;
            ``recording`` changes nothing: what the most is that could be had; ``foreign`` takes the
            next recording of another group instead: what chance would bring. It is left out where
            there is no other group.
        pair_metrics: compare each result with its recording.
        set_metrics: of continuations; the recording stands in for prompt and truth, so that figures
            of these are left out.

    Returns:
        ``items``, ``groups`` and ``unusable``; ``ways``: per way, every figure that any item has as
        an estimate with its interval over groups, under ``<metric> <figure>`` where a metric has
        several; ``failed``: why metrics failed, which then have no figures from that way on.

    Raises:
        DataError: if no recording can be used.
        GenerationError: if the pipeline has no semantic tokenizer and a way needs one.
    """
    sources = _sources(pipeline, recordings)
    if not sources:
        raise DataError("recordings", "none can be used", "check the data")
    found, failed = {}, Failures()
    for way in ways:
        records = []
        for index, (recording, audio) in enumerate(tracked(sources, way, progress)):
            made = _made(pipeline, sources, index, way, seed)
            if made is not None:
                records.append(_record(recording, audio, made))
        if records:
            found[way] = _figures(records, pair_metrics, set_metrics, failed)
    return {
        "items": len(sources),
        "groups": len({recording.group for recording, _ in sources}),
        "unusable": len(recordings) - len(sources),
        "ways": found,
        "failed": failed,
    }


def _sources(pipeline: Pipeline, recordings: Sequence[Recording]) -> list[tuple[Recording, Audio]]:
    """Return the start of each recording, in whole frames of every stream."""
    found = []
    for recording in recordings:
        audio = usable(recording, pipeline.config.prompt)
        try:
            ready = [] if audio is None else pipeline.audio.prepared([audio], whole_units=True)
        except AudioError:
            continue
        found += [(recording, one) for one in ready]
    return found


def _made(
    pipeline: Pipeline,
    sources: Sequence[tuple[Recording, Audio]],
    index: int,
    way: Way,
    seed: int,
) -> Float[Tensor, "T"] | None:
    """Return the result for one recording, or None if there is none."""
    recording, audio = sources[index]
    if way == "recording":
        return audio.wave
    if way == "foreign":
        others = (*sources[index + 1 :], *sources[:index])
        return next((a.wave for other, a in others if other.group != recording.group), None)
    if way == "acoustic_generation":
        return pipeline.acoustic_generation(audio.wave, audio.sample_rate, seed=seed).row()
    return pipeline.resynthesize(audio.wave, audio.sample_rate, through=way).row()


def _record(recording: Recording, audio: Audio, made: Float[Tensor, "T"]) -> Continuation:
    length = min(audio.wave.shape[0], made.shape[0])
    return Continuation(
        prompt=audio.wave[:length],
        continuation=made[:length],
        truth=audio.wave[:length],
        sample_rate=audio.sample_rate,
        group=recording.group,
        place=recording.place,
    )


def _figures(
    records: Sequence[Continuation],
    pair_metrics: Mapping[str, Metric],
    set_metrics: Mapping[str, ContinuationMetric],
    failed: Failures,
) -> dict[str, Any]:
    rows = [
        figures_of_pair(pair_metrics, one.prompt, one.continuation, one.sample_rate, failed)
        for one in records
    ]
    groups = [record.group for record in records]
    found: dict[str, Any] = grouped_summary(without(rows, failed), groups)
    sets = {name: metric for name, metric in set_metrics.items() if name not in failed}
    for name, figures in measured(records, sets, failed).items():
        found |= {
            f"{name} {key}": value
            for key, value in figures.items()
            if value["count"] and not key.startswith(ABOUT_RECORDINGS) and "_to_truth" not in key
        }
    return found
