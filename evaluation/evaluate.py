"""Evaluate a pipeline on held-out tokens, and say which recordings can be used at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from segue.core.audio import Audio
from segue.core.config.schema import PromptConfig
from segue.core.errors import AudioError
from segue.core.pipeline import Pipeline
from segue.core.progress import Progress
from segue.data.audio_files import read_recording
from segue.data.recordings import Recording
from segue.data.token_crops import TokenCrops
from segue.data.token_store import TokenStore
from segue.evaluation.statistics import summarise


def evaluate_likelihood(
    pipeline: Pipeline, tokens: Path, batches: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Mean negative log-likelihood of held-out tokens, in nats per token, by stage and level.

    ``bits_per_second`` is that of all levels of a stage: what is left of the tokens' own rate once
    the model predicts them. It compares codecs of other levels and frame rates.
    """
    store = TokenStore(tokens, "valid")
    found: dict[str, Any] = {}
    for done, config in enumerate(pipeline.config.stages, start=1):
        lm = pipeline.stage_lm(config.name)
        crops = TokenCrops(store, lm.stage, config.crop_seconds, batch_size=4, seed=0)
        rows = []
        for index in range(batches):
            batch = crops.batch(index).to(pipeline.device)
            mask = batch.target.mask
            per_level = -(lm.score(batch) * mask[:, None]).sum((0, 2)) / mask.sum()
            row = {f"level_{q}": float(value) for q, value in enumerate(per_level)}
            bits = float(per_level.sum()) / math.log(2)
            row["bits_per_second"] = bits * float(lm.stage.target.frame_rate)
            rows.append(row)
        found[config.name] = summarise(rows)
        if progress is not None:
            progress("likelihood", done, len(pipeline.config.stages))
    return found


def usable(recording: Recording, limits: PromptConfig) -> Audio | None:
    """The recording's first seconds, as many as a prompt may have; None if it cannot be used."""
    try:
        audio = read_recording(recording)
    except AudioError:
        return None
    if audio.seconds < limits.min_seconds:
        return None
    return Audio(audio.wave[: round(limits.max_seconds * audio.sample_rate)], audio.sample_rate)
