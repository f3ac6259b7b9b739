"""Measure speaker similarity and classification of continuations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchaudio.functional
from jaxtyping import Float, Int64
from torch import Tensor, nn

from segue.core.metrics import Continuation, ContinuationMetric, Measured, group_numbers
from segue.plugins.metrics.common import (
    SPEECH_RATE,
    for_speech,
    of_each,
    packaged_file,
    with_truth,
)

PACKAGE, WEIGHTS = "resemblyzer", "pretrained.pt"
BANDS, WIDTH = 40, 256
WINDOW, HOP = 400, 160
PART, STEP, COVERAGE = 160, 77, 0.75  # frames of a part, between parts; least of the last part
LEVEL_DB = -30.0  # quieter audio is brought to it


class SpeakerEncoder(nn.Module):
    """Embed a voice by three LSTM layers over mel spectra of 1.6 s; parts of an utterance are
    averaged (Wan et al., arXiv 1710.10467).

    The computation is that of Resemblyzer 0.1.4, of which only the weights are used, so that its
    own dependencies need not be installed. Pauses are left in: no voice activity detection.

    Raises:
        PluginError: if Resemblyzer is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, WIDTH, 3, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        bank = torchaudio.functional.melscale_fbanks(
            WINDOW // 2 + 1, 0.0, SPEECH_RATE / 2, BANDS, SPEECH_RATE,
            norm="slaney", mel_scale="slaney",
        )  # fmt: skip
        self.register_buffer("bank", bank, persistent=False)
        path = packaged_file(PACKAGE, WEIGHTS, "speaker.v1", "pip install 'segue[metrics]'")
        content = torch.load(path, map_location="cpu", weights_only=True)
        own = self.state_dict()
        self.load_state_dict({key: content["model_state"][key] for key in own})
        self.eval()

    @torch.inference_mode()
    def forward(self, wave: Float[Tensor, "T"], sample_rate: int) -> Float[Tensor, "256"]:
        """Return an embedding of length 1; zeros for silence, which has no voice."""
        heard = for_speech(wave, sample_rate)
        if heard is None:
            return torch.zeros(WIDTH)
        level = 10 * math.log10(float(heard.square().mean()))
        heard = heard * 10 ** (max(0.0, LEVEL_DB - level) / 20)
        starts = _starts(heard.shape[0])
        missing = (starts[-1] + PART) * HOP - heard.shape[0]
        mel = self._mel(nn.functional.pad(heard, (0, max(0, missing))))
        parts = torch.stack([mel[start : start + PART] for start in starts])
        _, (hidden, _) = self.lstm(parts)
        voices = nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)
        return nn.functional.normalize(voices.mean(0), dim=0)

    def _mel(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N 40"]:
        assert isinstance(self.window, Tensor) and isinstance(self.bank, Tensor)
        spectrum = torch.stft(
            wave, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True
        )
        return spectrum.abs().square().T @ self.bank


def _starts(samples: int) -> list[int]:
    """Return the first frames of the parts of an utterance."""
    frames = math.ceil((samples + 1) / HOP)
    starts = list(range(0, max(1, frames - PART + STEP + 1), STEP))
    if len(starts) > 1 and (samples - starts[-1] * HOP) / (PART * HOP) < COVERAGE:
        starts.pop()
    return starts


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
        prompts, made, truth = map(torch.stack, of_each(records, self._encoder))
        chance = 1 / (int(speakers.max()) + 1)
        rows = []
        for index in range(len(records)):
            ours = judged(made[index], prompts, speakers, index)
            real = judged(truth[index], prompts, speakers, index)
            if not records[index].truth.numel():
                real = dict.fromkeys(real, math.nan)
            rows.append({**with_truth(ours, real), "chance": chance})
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
