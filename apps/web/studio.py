"""Make the results that the page shows, with their files and pictures. Imports no gradio."""

from __future__ import annotations

import filecmp
import json
import re
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from segue.apps.cli.options import DEFAULT_DOMAIN
from segue.apps.cli.saving import metadata_path, save_audio
from segue.core.config_files import domain_names, find_domain, load_config
from segue.core.errors import SegueError
from segue.core.memory import out_of_memory
from segue.core.plugins import default_host
from segue.core.progress import Progress

if TYPE_CHECKING:
    from segue.core.audio import Audio
    from segue.inference.pipeline import Pipeline
    from segue.inference.request import Drawing, GeneratedAudio
    from segue.plugins.provenance.signing import Signer

NEW = 1  # of a result's sounds: the one without the prompt
LOADED = 2  # pipelines kept in memory
UPDATE_SECONDS = 0.2  # between two looks at the progress
#: The place that an error names → the words on the page.
PLACES = {"prompt": "Your prompt", "seconds": "Length", "seed": "Seed", "batch": "Variants"}
FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:;'\"]+[\\/])+")


class ProblemError(Exception):
    """A mistake of the visitor, said in plain words."""


@dataclass(frozen=True)
class Model:
    """A pipeline that the page offers."""

    source: str  # as ``Pipeline.from_pretrained`` takes it
    description: str  # what to expect of it
    temperatures: Mapping[str, float]  # of each stage, in order
    most_seconds: float  # of a prompt; only the end of a longer one is used
    example: Path | None = None  # a prompt to try, or None


@dataclass(frozen=True)
class Choices:
    """The choices that a visitor made."""

    seconds: float = 5.0
    count: int = 1
    seed: int = 0
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @property
    def drawing(self) -> Drawing:
        """The seed and the sampling, as methods of a pipeline take them."""
        stages = {stage: {"temperature": value} for stage, value in self.temperatures.items()}
        return {"seed": self.seed, "sampling": stages}


@dataclass(frozen=True)
class Result:
    """Generated audio with its files."""

    number: int  # what the page calls it
    about: str  # how it came about
    model: str  # domain and stage model
    seed: int
    seconds: float  # length of the whole
    marks: tuple[float, ...]  # seconds at which new audio begins, and ends if kept audio follows
    # Label → (file, second at which it starts in the whole); the whole comes first.
    sounds: Mapping[str, tuple[Path, float]]
    picture: Path
    notes: tuple[str, ...]  # changes made to the prompt and to the result

    @property
    def whole(self) -> Path:
        """The audio file to download; beside it lies the config that made it."""
        return next(iter(self.sounds.values()))[0]

    @property
    def config(self) -> Path:
        return metadata_path(self.whole)


def offered_models(pipelines: Sequence[Path] = ()) -> dict[str, dict[str, Model]]:
    """Return the models of each domain with weights, and the user's pipelines."""
    host, found = default_host(), dict[str, dict[str, Model]]()
    for directory in pipelines:
        found[directory.resolve().parent.name] = {"standard": _model(str(directory), None)}
    for name in sorted(domain_names(host), key=lambda name: name != DEFAULT_DOMAIN):
        domain = find_domain(name, host)
        for source in domain.pretrained_names:
            variant = source.partition("/")[2].replace("_", " ") or "standard"
            found.setdefault(name, {})[variant] = _model(source, domain.prompt)
    return found


def _model(source: str, example: Path | None) -> Model:
    host = default_host()
    config = load_config(source, host).config
    temperatures = {stage.name: stage.sampling.temperature for stage in config.stages}
    about = config.description and f"{config.description[:1].upper()}{config.description[1:]}."
    return Model(source, about, temperatures, config.prompt.max_seconds, example)


class Studio:
    """Make results, one request at a time.

    Args:
        pipelines: directories to offer beside the shipped weights.
        signer: signs the files of results; None leaves them as they are.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        pipelines: Sequence[Path] = (),
        signer: Signer | None = None,
    ) -> None:
        self.folder, self._signer = folder, signer
        self.models = offered_models(pipelines)
        self._lock = Lock()
        self._pipeline = lru_cache(LOADED)(lambda source: _load(source, device))

    def model(self, domain: str, variant: str) -> Model:
        """Return a model by its names on the page."""
        return self.models[domain][variant]

    @property
    def examples(self) -> set[Path]:
        """The prompts to try."""
        models = (model for variants in self.models.values() for model in variants.values())
        return {model.example for model in models if model.example is not None}

    def is_example(self, prompt: Path) -> bool:
        """Return whether a file, maybe a copy, is one of the prompts to try."""
        return any(filecmp.cmp(prompt, example, shallow=False) for example in self.examples)

    def continue_(
        self, model: Model, prompt: Path | None, settings: Choices, progress: Progress
    ) -> list[Result]:
        """Continue a recording; one result per variant, numbered from 1."""
        from segue.sound.reading import read_audio

        if prompt is None:
            raise ProblemError("Record or upload a prompt first, or start from nothing.")
        recording = read_audio(prompt, last_seconds=model.most_seconds, place=PLACES["prompt"])
        with self._lock:
            pipeline = self._pipeline(model.source)
            audio = self._continued(pipeline, recording, settings, progress)
            labels = ("Joined", "Continuation", "Prompt")
            return self._kept(pipeline, audio, model, "continues your prompt", labels)

    def generate(self, model: Model, settings: Choices, progress: Progress) -> list[Result]:
        """Start from nothing."""
        with self._lock:
            pipeline = self._pipeline(model.source)
            audio = pipeline.generate(
                settings.seconds, batch=settings.count, progress=progress, **settings.drawing
            )
            return self._kept(pipeline, audio, model, "starts from nothing", ("Generated",))

    def extend(
        self, model: Model, result: Result, point: float, settings: Choices, progress: Progress
    ) -> list[Result]:
        """Continue a result from a point in it; all that comes before is kept."""
        from segue.core.audio import Audio, resample

        wave, rate = _read(result)
        kept = wave[: round(point * rate)]
        if not 0 < point <= result.seconds + 0.01:
            raise ProblemError(f"Choose a point within the {result.seconds:.1f} s of the result.")
        with self._lock:
            pipeline = self._pipeline(model.source)
            audio = self._continued(pipeline, Audio(kept, rate), settings, progress)
            # A pipeline sees the last seconds of a long prompt only: put the others back.
            if rate != audio.sample_rate:
                kept = resample(kept, rate, audio.sample_rate)
            put_before(audio, kept)
            about = f"continues result {result.number} from {point:.1f} s"
            labels = ("Joined", "Continuation", "Before")
            return self._kept(pipeline, audio, model, about, labels, result)

    def fill(
        self,
        model: Model,
        result: Result,
        stretch: tuple[float, float],
        settings: Choices,
        progress: Progress,
    ) -> list[Result]:
        """Draw a stretch of a result anew; what is before and after it is kept."""
        start, end = stretch
        if not 0 <= start < end <= result.seconds + 0.01:
            raise ProblemError("Choose a stretch: drag over a picture, or type where it ends.")
        wave, rate = _read(result)
        about = f"fills {start:.1f} to {end:.1f} s of result {result.number}"
        count, filled = settings.count, list[Result]()

        def share(name: str, done: int, total: int) -> None:
            progress(name, len(filled) * total + done, count * total)

        with self._lock:
            pipeline = self._pipeline(model.source)
            for index in range(count):
                drawing: Drawing = {**settings.drawing, "seed": settings.seed + index}
                stop = min(end, len(wave) / rate)
                audio = pipeline.fill(wave, rate, start, stop, progress=share, **drawing)
                labels = ("Whole", "New part")
                (made,) = self._kept(pipeline, audio, model, about, labels, result)
                filled.append(replace(made, number=index + 1))
        return filled

    def _continued(
        self, pipeline: Pipeline, recording: Audio, settings: Choices, progress: Progress
    ) -> GeneratedAudio:
        return pipeline.continue_batch(
            [recording] * settings.count,
            seconds=settings.seconds,
            progress=progress,
            **settings.drawing,
        )

    def _kept(
        self,
        pipeline: Pipeline,
        audio: GeneratedAudio,
        model: Model,
        about: str,
        labels: Sequence[str],
        source: Result | None = None,
    ) -> list[Result]:
        """Write the files of each row.

        Args:
            labels: of the whole, of the new part, and of the part before it.
        """
        from segue.core.audio import write_audio

        if source is not None:
            audio.metadata["source"] = json.loads(source.config.read_text(encoding="utf-8"))
        seeds = [audio.described(row)["seed"] for row in range(len(audio.wave))]
        # Folders whose names other visitors cannot guess.
        name = audio.metadata["pipeline"]
        paths = [
            self.folder / secrets.token_urlsafe(12) / f"segue-{name}-{seed}.wav" for seed in seeds
        ]
        save_audio(pipeline, audio, paths, signer=self._signer)
        results = []
        for row, path in enumerate(paths):
            rate, wave, new = audio.sample_rate, audio.row(row), audio.continuation(row)
            start = int(audio.prompt_samples[row])
            parts = [(wave, 0.0), (new, start / rate), (wave[:start], 0.0)]
            sounds = {}
            for index, (label, (part, begins)) in enumerate(zip(labels, parts, strict=False)):
                sounds[label] = (path if index == 0 else path.with_name(f"{index}.wav"), begins)
                if index:
                    write_audio(sounds[label][0], part, rate)
                if index == NEW and self._signer is not None:
                    made = audio.described(row) | {"prompt_seconds": 0.0}
                    self._signer.sign(sounds[label][0], made)
            ends = (start, start + len(new))
            marks = tuple(at / rate for at in ends if 0 < at < len(wave))
            picture = draw_picture(wave.numpy(), rate, path.with_name("picture.png"))
            results.append(
                Result(
                    row + 1, about, model.source, seeds[row], len(wave) / rate, marks, sounds,
                    picture, audio.notes[row],
                )
            )  # fmt: skip
        return results


def _load(source: str, device: str) -> Pipeline:
    from segue.inference.pipeline import Pipeline

    return Pipeline.from_pretrained(source, device=device)


def _read(result: Result) -> tuple[Any, int]:
    from segue.sound.reading import read_audio

    audio = read_audio(result.whole)
    return audio.wave, audio.sample_rate


def put_before(audio: GeneratedAudio, kept: Any) -> None:
    """Put that start of ``kept`` before every row which the row's own prompt lacks."""
    import torch

    missing = kept[: max(0, len(kept) - int(audio.prompt_samples[0]))]
    audio.wave = torch.cat([missing.expand(len(audio.wave), -1), audio.wave], dim=1)
    audio.lengths = audio.lengths + len(missing)
    audio.prompt_samples = audio.prompt_samples + len(missing)


def draw_picture(wave: Any, rate: int, path: Path) -> Path:
    """Draw a waveform above its spectrogram as a PNG without margins: time fills its width."""
    from matplotlib.figure import Figure  # no pyplot: requests run in threads

    from segue.apps.spectrogram import draw_spectrum, draw_waveform

    figure = Figure(figsize=(9, 2.6), facecolor="#14161c")
    top = figure.add_axes((0, 0.66, 1, 0.34))
    bottom = figure.add_axes((0, 0, 1, 0.64))
    draw_waveform(wave, rate, top, "#9aa5ff")
    draw_spectrum(wave, rate, bottom)
    for axis in (top, bottom):
        axis.set_xlim(0, len(wave) / rate)
        axis.set_axis_off()
    figure.savefig(path, dpi=100)
    return path


def forget(results: Sequence[Result]) -> None:
    """Delete the files of results."""
    for result in results:
        shutil.rmtree(result.whole.parent, ignore_errors=True)


class Abandoned(Exception):  # noqa: N818  # a request, not an error
    """Nobody waits for the result any more."""


#: Stage → (frames done, frames in all, seconds since it began).
Steps = dict[str, tuple[int, int, float]]


def followed(
    work: Callable[[Progress], list[Result]],
) -> Generator[Steps | list[Result], None, None]:
    """Run work in a thread; yield its progress now and then, and at last its results.

    Work ends at its next step when the iterator is closed.
    """
    ended: Queue[list[Result] | BaseException] = Queue()
    stop, steps, began = Event(), Steps(), dict[str, float]()

    def progress(name: str, done: int, total: int) -> None:
        if stop.is_set():
            raise Abandoned
        steps[name] = (done, total, time.monotonic() - began.setdefault(name, time.monotonic()))

    def run() -> None:
        try:
            ended.put(work(progress))
        except BaseException as error:
            ended.put(error)

    Thread(target=run, daemon=True).start()
    try:
        while True:
            yield dict(steps)
            try:
                outcome = ended.get(timeout=UPDATE_SECONDS)
            except Empty:
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
            return
    finally:
        stop.set()


def plain_words(error: Exception) -> str:
    """Return what went wrong and what to do, without a path; log what a visitor cannot mend."""
    if isinstance(error, ProblemError):
        return str(error)
    if isinstance(error, SegueError):
        place = Path(error.place).name if Path(error.place).is_absolute() else error.place
        place = PLACES.get(place, place)
        text = f"{place}: {error.problem}. {error.fix[:1].upper()}{error.fix[1:]}."
        return FOLDERS.sub("", text)
    if out_of_memory(error):
        return "There is not enough memory. Choose a shorter length or fewer variants."
    traceback.print_exception(error, file=sys.stderr)
    return "Something went wrong in Segue. The terminal that runs `segue web` shows what."
