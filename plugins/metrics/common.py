"""Share what several metrics need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.functional import edit_distance

from segue.core.audio import SILENCE, resample
from segue.core.errors import PluginError
from segue.core.interfaces import Metric
from segue.core.metrics import Continuation

SPEECH_RATE = 16_000  # of all recognisers and judges of speech
Found = TypeVar("Found")


def packaged_file(package: str, inside: str, component: str, fix: str) -> Path:
    """Find weights inside an installed package without importing it, which may need far more.

    Args:
        package: its import name.
        inside: the file, relative to the package's folder.

    Raises:
        PluginError: if it is not installed, or lacks this file.
    """
    found = find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / inside).is_file():
            return Path(folder) / inside
    raise PluginError(component, f"the weights of {package} are not installed", fix)


def onnx_session(path: Path) -> Any:
    """Open an ONNX model with as many threads as PyTorch has."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), settings)


def is_silent(wave: Float[Tensor, "T"]) -> bool:
    """Return whether there is nothing to hear."""
    return not wave.numel() or bool(wave.abs().max() < SILENCE)


def for_speech(wave: Float[Tensor, "T"], sample_rate: int) -> Float[Tensor, "N"] | None:
    """Resample audio to the rate of judges of speech; None for silence."""
    return None if is_silent(wave) else resample(wave, sample_rate, SPEECH_RATE)


class TranscriptError(Metric):
    """Count edits over the length of what a recogniser hears in the reference.

    The reference's transcript is the recogniser's own, not the truth: what it gets wrong in both
    counts as kept. Silence has 1.
    """

    domains = ("speech",)
    higher_is_better = False
    recognise: Callable[[Tensor, int], Sequence[str]]

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        """Return the figure, or NaN if nothing is heard in the reference."""
        wanted = self.recognise(reference, sample_rate)
        if not wanted:
            return math.nan
        return edit_distance(self.recognise(audio, sample_rate), wanted) / len(wanted)


def of_each(
    records: Sequence[Continuation], measure: Callable[[Tensor, int], Found]
) -> tuple[list[Found], list[Found], list[Found]]:
    """Measure all prompts, all continuations and all true continuations."""
    return (
        [measure(record.prompt, record.sample_rate) for record in records],
        [measure(record.continuation, record.sample_rate) for record in records],
        [measure(record.truth, record.sample_rate) for record in records],
    )


def with_truth(ours: Mapping[str, float], truth: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of a continuation and, as ``truth_...``, those of the recording's own."""
    return {**ours, **{f"truth_{name}": figure for name, figure in truth.items()}}


def of_others(records: Sequence[Continuation], index: int, values: Sequence[Found]) -> list[Found]:
    """Return the values of the records of other groups than that of one record."""
    group = records[index].group
    return [value for record, value in zip(records, values, strict=True) if record.group != group]
