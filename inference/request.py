"""Describe a request for audio and its result, as callers and lifecycle hooks see them."""

from __future__ import annotations

import base64
import html
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.assembly import TOKENIZER_OF, Assembly, Part
from segue.core.audio import Audio, encoded_audio, write_audio
from segue.core.config import StageConfig
from segue.core.errors import GenerationError, OutputError
from segue.core.options import Sampling
from segue.core.tokens import Tokens, WaveBatch
from segue.core.validation import real_number, validate, whole_number

Task = Literal["continue", "generate", "acoustic_generation", "resynthesize", "fill"]
PromptAudio = Literal["original", "codec", "none"]
SamplingOverrides = Mapping[str, Mapping[str, Any]]


class Drawing(TypedDict, total=False):
    """The arguments that say how tokens are drawn, the same for all methods of a pipeline.

    Attributes:
        seed: the same seed gives the same audio; 0 by default. None draws one;
            ``metadata["seed"]`` says it. Row i of several uses ``seed + i``, or the i-th of a list.
        sampling: changes to the config's sampling by stage: ``{"coarse": {"top_k": 50}}``.
        temperature: of all stages; ``sampling`` wins over this and the next two.
        top_k: the same.
        top_p: the same.
    """

    seed: int | Sequence[int] | None
    sampling: SamplingOverrides | None
    temperature: float | None
    top_k: int | None
    top_p: float | None


MAX_SECONDS = 3600.0
MIN_CHUNK = 0.02
MAX_BATCH = 1024
MOST_SEED = 2**62 - 1  # of any row; fits 64 bits wherever it is written down
MAX_PLAYERS = 8  # in a notebook; each holds its audio in the page


@dataclass(frozen=True)
class Request:
    """A request for audio, checked and completed."""

    task: Task  # the method of the pipeline that was called; ``stream`` continues or generates
    seconds: float  # length of audio to add, or of the recording that is resynthesized
    seeds: tuple[int, ...]  # one per row
    sampling: Mapping[str, Sampling]  # by stage, of those that run
    # Most new audio of a stage's first window; None for as much as fits.
    chunk_seconds: float | None = None
    # One recording per row, at the pipeline's rate; empty if there are none.
    prompts: tuple[Audio, ...] = ()
    # The start of the result: the recording, its codec version, or nothing.
    prompt_audio: PromptAudio = "original"
    # Start and end, in seconds, of the stretch of the recording that is redrawn; None if the
    # task is another.
    gap: tuple[float, float] | None = None
    # Continuations drawn by each stage that cannot look at both sides of the gap.
    candidates: int = 1

    @property
    def seed(self) -> int:
        """The seed of the first row."""
        return self.seeds[0]

    @property
    def batch(self) -> int:
        """The number of rows."""
        return len(self.seeds)

    @classmethod
    def checked(
        cls,
        task: Task,
        *,
        seconds: object,
        seed: object,
        batch: object,
        sampling: Mapping[str, Sampling],
        chunk_seconds: object = None,
        prompts: tuple[Audio, ...] = (),
        prompt_audio: PromptAudio = "original",
        gap: tuple[float, float] | None = None,
        candidates: object = 1,
    ) -> Request:
        """Make a request from a caller's values, or raise ``GenerationError``; draw a missing seed.

        Args:
            seed: of the first row, while row i uses ``seed + i``; or a list of one seed per row.
        """
        rows = whole_number(batch)
        if rows is None or not 1 <= rows <= MAX_BATCH:
            raise GenerationError("batch", f"{batch!r} is out of range", f"use 1 to {MAX_BATCH}")
        length = real_number(seconds)
        most = math.inf if task == "resynthesize" else MAX_SECONDS  # a recording has its length
        if length is None or not 0 < length <= most:
            fix = f"use more than 0, at most {MAX_SECONDS:g}"
            raise GenerationError("seconds", f"{seconds!r} is out of range", fix)
        seeds = _seeds(seed, rows)
        chunk = None if chunk_seconds is None else real_number(chunk_seconds)
        if chunk_seconds is not None and (chunk is None or not MIN_CHUNK <= chunk <= MAX_SECONDS):
            fix = f"use {MIN_CHUNK:g} to {MAX_SECONDS:g}"
            raise GenerationError("chunk_seconds", f"{chunk_seconds!r} is out of range", fix)
        drawn = whole_number(candidates)
        if drawn is None or not 1 <= drawn <= 64:
            fix = "use 1 to 64"
            raise GenerationError("candidates", f"{candidates!r} is out of range", fix)
        return cls(task, length, seeds, sampling, chunk, prompts, prompt_audio, gap, drawn)


def _seeds(seed: object, rows: int) -> tuple[int, ...]:
    """Return one seed per row, counted on from one that was given or is drawn, or as listed."""
    if isinstance(seed, (list, tuple)):
        if len(seed) != rows:
            problem = f"lists {len(seed)} seeds for {rows} rows"
            raise GenerationError("seed", problem, "give one seed, or one per row")
        numbers = [whole_number(each) for each in seed]
    else:
        first = secrets.randbelow(2**32) if seed is None else whole_number(seed)
        numbers = [None if first is None else first + row for row in range(rows)]
    found = tuple(number for number in numbers if number is not None and 0 <= number <= MOST_SEED)
    if len(found) < rows:
        counted = 0 if isinstance(seed, (list, tuple)) else rows - 1  # from a seed on
        fix = f"use a whole number from 0 to {MOST_SEED - counted}, or None"
        raise GenerationError("seed", f"{seed!r} is out of range", fix)
    return found


#: The name that hooks of the first plugin API use.
GenerationRequest = Request


def chosen_sampling(
    stages: Iterable[StageConfig],
    overrides: SamplingOverrides | None,
    shared: Mapping[str, Any] | None = None,
) -> dict[str, Sampling]:
    """Return the sampling of each stage: that of the config, changed as asked.

    Args:
        overrides: changes by stage.
        shared: changes for all stages, over which those of a stage win.

    Raises:
        GenerationError: if a stage does not exist or its changes are not a mapping.
        ConfigError: if a value is out of range.
    """
    asked = validate(Sampling, dict(shared or {}), "").model_dump(exclude_unset=True)
    chosen = {stage.name: stage.sampling.model_copy(update=asked) for stage in stages}
    for name, changes in _as_mapping(overrides or {}, "sampling").items():
        if name not in chosen:
            raise GenerationError(
                f"sampling.{name}", "is not a stage", f"choose one of {', '.join(chosen)}"
            )
        merged = chosen[name].model_dump() | dict(_as_mapping(changes, f"sampling.{name}"))
        chosen[name] = validate(Sampling, merged, f"sampling.{name}")
    return chosen


def _as_mapping(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise GenerationError(place, f"is {value!r}", "give a mapping, as {'temperature': 0.7}")
    return value


@dataclass(repr=False)
class GeneratedAudio:
    """A ragged batch of generated audio.

    Attributes:
        wave: ``[B, T]`` in [-1, 1], zero beyond a row's length.
        lengths: ``[B]`` samples.
        sample_rate: samples per second.
        prompt_samples: ``[B]`` samples at the start of each row that are the prompt.
        tokens: every stream's tokens, prompt included.
        notes: per row, changes made to the prompt (resampled, cropped, ...) and to the result.
        metadata: how it was made: task, seed, sampling, pipeline, resolved config; ``seed`` is that
            of the first row, ``seeds`` those of several.
        suffix_samples: ``[B]`` samples at the end of each row that are kept from a recording; None
            for none.
    """

    wave: Float[Tensor, "B T"]
    lengths: Int64[Tensor, "B"]
    sample_rate: int
    prompt_samples: Int64[Tensor, "B"]
    tokens: Mapping[str, Tokens]
    notes: list[tuple[str, ...]]
    metadata: dict[str, Any] = field(default_factory=dict)
    suffix_samples: Int64[Tensor, "B"] | None = None

    @classmethod
    def of(
        cls,
        request: Request,
        wave: Float[Tensor, "B T"],
        sample_rate: int,
        tokens: Mapping[str, Tokens],
        lengths: Int64[Tensor, "B"] | None = None,
        prompt_samples: Int64[Tensor, "B"] | None = None,
        ended: Sequence[bool] = (),
    ) -> GeneratedAudio:
        """Put the result of a request together, within full scale.

        Args:
            lengths: valid samples of each row; None for all.
            prompt_samples: samples of each row that are the prompt; None for none.
            ended: for each row, whether a stage drew where its audio ends.
        """
        nothing = torch.zeros(len(wave), dtype=torch.long)
        audio = cls(
            wave,
            nothing + wave.shape[1] if lengths is None else lengths,
            sample_rate,
            nothing if prompt_samples is None else prompt_samples,
            dict(tokens),
            [prompt.notes for prompt in request.prompts] or [()] * request.batch,
        )
        for row in (row for row, end in enumerate(ended) if end):
            seconds = audio.continuation(row).shape[0] / sample_rate
            audio.note(row, f"ended by itself after {seconds:.2f} s")
        if request.prompt_audio == "none":
            batch = WaveBatch.pad([audio.continuation(row) for row in range(len(wave))])
            audio.wave, audio.lengths, audio.prompt_samples = batch.wave, batch.lengths, nothing
        audio.clip()  # files clip anyway; here it is noted, and hooks see the final samples
        return audio

    def clip(self) -> None:
        """Bring all samples within full scale, and note in which rows some were beyond it."""
        for row, samples in enumerate(self.wave.abs()):
            peak = float(samples.max()) if len(samples) else 0.0
            if peak > 1.0:
                self.note(row, f"clipped a peak of {peak:.2f}")
        self.wave = self.wave.clamp(-1.0, 1.0)

    def described(self, row: int = 0) -> dict[str, Any]:
        """Return all that made one row, as JSON values; ``seed`` is the row's own."""
        made = dict(self.metadata)
        if "seeds" in made:
            made["seed"] = made.pop("seeds")[row]
        prompt_seconds = int(self.prompt_samples[row]) / self.sample_rate
        return made | {
            "row": row,
            "prompt_seconds": prompt_seconds,
            "notes": list(self.notes[row]),
        }

    def note(self, row: int, note: str) -> None:
        """Add a note on one row."""
        self.notes[row] = (*self.notes[row], note)

    def __repr__(self) -> str:
        seconds = [f"{n / self.sample_rate:.2f} s" for n in self.lengths.tolist()]
        parts = [f"{_few(seconds)} at {self.sample_rate} Hz"]
        if "task" in self.metadata:
            parts.append(f"task {self.metadata['task']}")
        if "seeds" in self.metadata:
            parts.append(f"seeds {_few(self.metadata['seeds'])}")
        elif "seed" in self.metadata:
            parts.append(f"seed {self.metadata['seed']}")
        return f"GeneratedAudio({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Show a player for each of the first rows in a notebook."""
        players = []
        for row in range(min(len(self.wave), MAX_PLAYERS)):
            data = base64.b64encode(self.wav_bytes(row)).decode()
            source = f"data:audio/wav;base64,{data}"
            players.append(f'<audio controls preload="metadata" src="{source}"></audio>')
        return f"<div>{html.escape(repr(self))}<br>{'<br>'.join(players)}</div>"

    def play(self) -> None:
        """Show players in a notebook, or raise ``OutputError`` outside of one."""
        try:
            from IPython import get_ipython
            from IPython.display import HTML, display
        except ImportError:
            get_ipython = None
        if get_ipython is None or get_ipython() is None:
            raise OutputError("play", "works in a notebook", "write a file: audio.save('out.wav')")
        display(HTML(self._repr_html_()))

    def save(self, path: Path | str, row: int = 0) -> Path:
        """Write the audio of one row to a file; the suffix chooses the format.

        Raises:
            OutputError: if it cannot be written there.
            AudioError: if no audio format has that suffix.
        """
        write_audio(path, self.row(row), self.sample_rate)
        return Path(path)

    def wav_bytes(self, row: int = 0) -> bytes:
        """Return the audio of one row as a 16-bit WAV file, to send it instead of saving it."""
        return encoded_audio(self.row(row), self.sample_rate)

    def row(self, index: int = 0) -> Float[Tensor, "T"]:
        """Return the audio of one row, prompt included."""
        return self.wave[index, : int(self.lengths[index])]

    def continuation(self, index: int = 0) -> Float[Tensor, "T"]:
        """Return the new audio of one row: what lies after its prompt, or between kept sides."""
        suffix = 0 if self.suffix_samples is None else int(self.suffix_samples[index])
        start = int(self.prompt_samples[index])
        return self.wave[index, start : int(self.lengths[index]) - suffix]


def _few(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:4])) + (", ..." if len(items) > 4 else "")


#: Keys that a description of audio leaves out: how parts are trained, places on this machine.
_PRIVATE = {"training", "checkpoint", "options"}
_NOT_DESCRIBED: Any = {
    "format_version": True,
    "name": True,
    "description": True,
    "threads": True,
    "semantic_tokenizer": _PRIVATE,
    "codec": _PRIVATE,
    "stages": {"__all__": {"sampling": True, "lm": _PRIVATE}},
}


def metadata_of(request: Request, assembly: Assembly) -> dict[str, Any]:
    """Return how audio is made, as JSON values."""
    config = assembly.config
    described = config.model_dump(mode="json", exclude_none=True, exclude=_NOT_DESCRIBED)
    for name in TOKENIZER_OF.values():
        if name in described:
            described[name]["options"] = _options(assembly.parts[name])
    for stage in described["stages"]:
        stage["lm"]["options"] = _options(assembly.parts[f"stages.{stage['name']}"])
    return {
        "generator": "segue",
        "pipeline": config.name,
        "description": config.description,
        "task": request.task,
        "seconds": request.seconds,
        "seed": request.seed,
        **({} if request.batch == 1 else {"seeds": list(request.seeds)}),
        "chunk_seconds": request.chunk_seconds,
        **({} if request.gap is None else {"gap": list(request.gap)}),
        "sampling": {
            name: sampling.model_dump(mode="json", exclude_none=True)
            for name, sampling in request.sampling.items()
        },
        "fingerprints": {name: spec.fingerprint for name, spec in assembly.streams.items()},
        "config": described,
    }


def _options(part: Part) -> dict[str, Any]:
    """Return the options that are used while audio is made; of a path only its last name."""
    unused = set(part.options.of_training)
    values = part.options.model_dump(mode="json", exclude=unused, exclude_none=True)
    return dict(_without_folders(values))


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    is_path = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name if is_path else value


def with_recordings(
    wave: Float[Tensor, "B T"], prompts: Sequence[Audio], join: int
) -> Float[Tensor, "B T"]:
    """Put each recorded prompt over its codec version, cross-faded over ``join`` samples."""
    wave = wave.clone()  # decoded in inference mode, where nothing can be written in place
    for row, audio in zip(wave, prompts, strict=True):
        count = audio.wave.shape[0]
        fade = min(join, count)
        weight = torch.ones(count)
        weight[count - fade :] = torch.linspace(1, 0, fade + 2)[1:-1]
        row[:count] = weight * audio.wave + (1 - weight) * row[:count]
    return wave
