"""Measure speaker similarity and classification of continuations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.metrics import Continuation, ContinuationMetric, Measured, group_numbers
from segue.plugins.metrics.speaker.encoder import SpeakerEncoder


class Speaker(ContinuationMetric):
    """Measure whether a continuation keeps the voice of its prompt.

    ``similarity`` is the cosine to the prompt, ``others`` the mean cosine to prompts of other
    speakers and ``nearest_other`` the largest. ``above_others`` is 1 if the first exceeds the
    second; ``classified`` is 1 if it exceeds the third: if a classifier that knows each speaker
    by the prompts names the right one. ``truth_...`` measures the recording's own continuation, the
    upper limit; ``chance`` is one in the number of speakers.
    """

    domains = ("speech",)

    def __init__(self) -> None:
        self._encoder = SpeakerEncoder()

    def measure(self, records: Sequence[Continuation]) -> Measured:
        speakers = group_numbers([record.group for record in records])
        prompts, made, truth = (
            torch.stack([self._encoder(wave, record.sample_rate) for wave, record in pairs])
            for pairs in (
                [(record.prompt, record) for record in records],
                [(record.continuation, record) for record in records],
                [(record.truth, record) for record in records],
            )
        )
        chance = 1 / (int(speakers.max()) + 1)
        rows = []
        for index in range(len(records)):
            ours = judged(made[index], prompts, speakers, index)
            real = judged(truth[index], prompts, speakers, index)
            if not records[index].truth.numel():
                real = dict.fromkeys(real, math.nan)
            prefixed = {f"truth_{name}": value for name, value in real.items()}
            rows.append({**ours, **prefixed, "chance": chance})
        return Measured(rows)


def judged(
    voice: Float[Tensor, "D"],
    prompts: Float[Tensor, "B D"],
    speakers: Int64[Tensor, "B"],
    index: int,
) -> dict[str, float]:
    """Judge one voice that should be that of prompt ``index``. Of that speaker only this prompt
    counts, so that several prompts of a speaker give no advantage."""
    cosines = prompts @ voice
    similarity, others = float(cosines[index]), cosines[speakers != speakers[index]]
    if not len(others):
        nothing = dict.fromkeys(("others", "nearest_other", "above_others", "classified"), math.nan)
        return {"similarity": similarity, **nothing}
    return {
        "similarity": similarity,
        "others": float(others.mean()),
        "nearest_other": float(others.max()),
        "above_others": float(similarity > others.mean()),
        "classified": float(similarity > others.max()),
    }
