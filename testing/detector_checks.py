"""Check the promises of every detector of generated audio."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.core.interfaces import ORIGINS, Detector, WaveBatch
from segue.core.options import DetectorOptions
from segue.testing.check import NotApplicable, made, require
from segue.testing.compare import (
    a_day_later,
    any_device,
    require_close,
    require_finite,
    through_safetensors,
    unchanged,
    undisturbed,
)
from segue.testing.subject import Subject
from segue.testing.synthetic import ragged_audio

_LONG_SECONDS = 12


def detector_of(subject: Subject) -> Detector:
    detector = made(subject, Detector)
    is_model = isinstance(detector.config, DetectorOptions)
    require(is_model, f"{type(detector.config).__name__} is not a DetectorOptions")
    return detector


def audio_for(detector: Detector) -> WaveBatch:
    """Return a whole window, half of one, and a tenth of a second."""
    rate = detector.config.sample_rate
    window = round(detector.config.window_seconds * rate)
    return ragged_audio([window, window // 2, rate // 10], rate)


@torch.no_grad()
def score(detector: Detector, audio: WaveBatch) -> Tensor:
    return detector.score(audio.wave, audio.lengths)


def check_scores_are_probabilities(subject: Subject) -> None:
    """Check that each row has a probability of each origin, also silence and long audio."""
    detector = detector_of(subject)
    audio = audio_for(detector)
    with unchanged(wave=audio.wave, lengths=audio.lengths):
        scores = score(detector, audio)
    silent = score(detector, WaveBatch(torch.zeros_like(audio.wave), audio.lengths))
    rate = detector.config.sample_rate
    long = score(detector, ragged_audio([_LONG_SECONDS * rate + 1], rate))
    for found, rows in ((scores, len(scores)), (silent, len(audio.lengths)), (long, 1)):
        wanted = (rows, len(ORIGINS))
        require(tuple(found.shape) == wanted, f"scores are {tuple(found.shape)}, not {wanted}")
        require_finite(found, "scores")
        require(bool((found >= 0).all()), f"a probability is {float(found.min()):.3g}")
        require_close(found.sum(dim=1), torch.ones(len(found)), "sum of a row", 1e-4)


def check_scored_batch_equals_rows(subject: Subject) -> None:
    """Check that each row of a ragged batch scores as if alone, whatever lies beyond its end."""
    detector = detector_of(subject)
    audio = audio_for(detector)
    beyond = torch.arange(audio.wave.shape[1]) >= audio.lengths[:, None]
    loud = torch.where(beyond, torch.rand_like(audio.wave) * 2 - 1, audio.wave)
    together = score(detector, WaveBatch(loud, audio.lengths))
    for row, length in enumerate(audio.lengths.tolist()):
        one = WaveBatch(audio.wave[row : row + 1, :length], audio.lengths[row : row + 1])
        require_close(together[row], score(detector, one)[0], f"row {row} in a batch", subject.atol)


def check_level_does_not_matter(subject: Subject) -> None:
    """Check that quieter audio has the same scores."""
    detector = detector_of(subject)
    audio = audio_for(detector)
    quiet = score(detector, WaveBatch(0.2 * audio.wave, audio.lengths))
    require_close(quiet, score(detector, audio), "a fifth as loud", 1e-2)


def check_is_deterministic(subject: Subject) -> None:
    """Check that audio has the same scores each time."""
    detector = detector_of(subject)
    audio = audio_for(detector)
    first = score(detector, audio)
    for number in range(3):
        torch.manual_seed(number)
        with a_day_later(detector):
            require_close(score(detector, audio), first, "the next time", 0.0)


def check_training_step_can_be_learnt_from(subject: Subject) -> None:
    """Check that a detector that Segue trains has a finite loss that reaches a parameter."""
    detector = detector_of(subject).train()
    audio = audio_for(detector)
    batch = WaveBatch(audio.wave, audio.lengths, torch.arange(3))
    try:
        loss = detector.training_step(batch)["loss"]
    except NotImplementedError as refusal:
        raise NotApplicable("it is not trained by Segue") from refusal
    require_finite(loss.detach(), "loss")
    loss.backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in detector.parameters()]
    require(any(reached), "the gradient of the loss reaches no parameter")


def check_state_round_trip(subject: Subject) -> None:
    """Check that a saved and loaded instance has the same scores."""
    saved, loaded = detector_of(subject), subject.blank(seed=99)
    loaded.load_state_dict(through_safetensors(saved.state_dict()), strict=True)
    audio = audio_for(saved)
    require_close(score(loaded, audio), score(saved, audio), "scores after loading", subject.atol)


def check_respects_the_device(subject: Subject) -> None:
    """Check that scores are on the device of the audio, an accelerator if there is one."""
    detector, device = detector_of(subject), any_device()
    found = score(detector.to(device), audio_for(detector).to(device))
    same = found.device.type == device.type
    require(same, f"scores are on {found.device}, the audio is on {device}")


@torch.no_grad()
def check_leaves_the_process_alone(subject: Subject) -> None:
    """Check that building and scoring change no seed or mode of the whole process."""
    with undisturbed():
        subject.blank()
    detector = detector_of(subject)
    audio = audio_for(detector)
    with torch.enable_grad(), undisturbed():
        detector.score(audio.wave, audio.lengths)
