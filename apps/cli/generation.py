"""`segue continue`, `generate`, `fill`, `resynthesize` and `stream`. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.apps.cli.options import (
    Chosen,
    JsonOption,
    OutputOption,
    SecondsOption,
    SeedOption,
    SignOption,
    with_groups,
)
from segue.apps.cli.output import note, renamed
from segue.apps.cli.progress import progress_bars
from segue.apps.cli.saving import (
    check_outputs,
    check_recordings,
    read_recording,
    report_on,
    save_audio,
    save_pieces,
    seekable,
)
from segue.core.errors import ConfigError

if TYPE_CHECKING:
    from segue.core.audio import Audio
    from segue.core.progress import Progress
    from segue.inference.pipeline import Pipeline
    from segue.inference.request import GeneratedAudio

#: Name in an error of the pipeline → the option that the user wrote.
PLACES = {
    "seconds": "--seconds",
    "seed": "--seed",
    "batch": "--count",
    "prompt_audio": "--prompt-audio",
    "chunk_seconds": "--chunk-seconds",
    "levels": "--levels",
    "start": "--start",
    "end": "--end",
    "candidates": "--candidates",
}
WAYS = ("codec", "semantic", "sampled")
PROMPT_HELP = "Audio in any format that libsndfile reads; - reads standard input."

PromptArgument = Annotated[Path, typer.Argument(help=PROMPT_HELP)]


@dataclass
class Work:
    """Hold what a command works with; it sets ``result`` and may add to the JSON ``report``."""

    pipeline: Pipeline
    recording: Audio | None
    progress: Progress | None
    report: dict[str, Any] = field(default_factory=dict)
    result: GeneratedAudio | None = None


@contextmanager
def making(
    chosen: Chosen,
    paths: Sequence[Path],
    json: bool,
    *,
    source: Path | None = None,
    whole: bool = False,
    picture: Path | None = None,
    sign: tuple[Path, Path] | None = None,
    verb: str = "generated",
) -> Iterator[Work]:
    """Load the pipeline and the recording, let the block make audio, then save and report it.

    Args:
        paths: audio files to write, one for each row of the result.
        whole: read all of it, not only its end as far as the pipeline uses it.
        picture: also draw the result there.
        sign: PEM files to sign the audio files with.
        verb: what the report says was done.
    """
    signer = check_outputs(paths, source=source, picture=picture, sign=sign)
    pipeline, recording = chosen.load(), None
    if source is not None:
        last_seconds = None if whole else pipeline.config.prompt.max_seconds
        recording = read_recording(source, last_seconds)
    started = time.perf_counter()
    with renamed(PLACES | {"prompt": str(source)}), progress_bars(json) as progress:
        work = Work(pipeline, recording, progress)
        yield work
    elapsed = time.perf_counter() - started
    assert work.result is not None
    save_audio(pipeline, work.result, paths, picture, title=str(source), signer=signer)
    report_on(work.result, paths, elapsed, json, verb, **work.report)


@with_groups
def continue_(
    chosen: Chosen,
    prompt: PromptArgument,
    output: OutputOption = Path("continuation.wav"),
    seconds: SecondsOption = 5.0,
    seed: SeedOption = 0,
    chunk_seconds: Annotated[
        float | None,
        typer.Option(help="Most new audio of one window of a stage; as in `segue stream`."),
    ] = None,
    prompt_audio: Annotated[
        str,
        typer.Option(
            help="Prompt in the file: original, codec (as it decodes the prompt) or none."
        ),
    ] = "original",
    picture: Annotated[
        Path | None, typer.Option(help="Also draw a spectrogram (PNG; needs segue\\[plot]).")
    ] = None,
    sign: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Continue a recording, keeping its voice or its music."""
    with making(chosen, [output], json, source=prompt, picture=picture, sign=sign) as work:
        pipeline = work.pipeline
        request = pipeline.request(
            "continue",
            [work.recording],
            {"seed": seed},
            seconds=seconds,
            prompt_audio=prompt_audio,  # type: ignore[arg-type]  # checked by the pipeline
            chunk_seconds=chunk_seconds,
        )
        work.result = pipeline.run(request, work.progress)


@with_groups
def generate(
    chosen: Chosen,
    output: OutputOption = Path("generated.wav"),
    seconds: SecondsOption = 5.0,
    count: Annotated[
        int, typer.Option(min=1, max=1024, help="Files to make; numbered from the second on.")
    ] = 1,
    seed: SeedOption = 0,
    sign: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Generate audio unconditionally."""
    names = (f"{output.stem}-{row + 1}{output.suffix}" for row in range(1, count))
    paths = [output, *(output.with_name(name) for name in names)]
    with making(chosen, paths, json, sign=sign) as work:
        work.result = work.pipeline.generate(
            seconds, batch=count, seed=seed, progress=work.progress
        )
        work.report["outputs"] = [str(path) for path in paths]


@with_groups
def resynthesize(
    chosen: Chosen,
    source: PromptArgument,
    output: OutputOption = Path("resynthesis.wav"),
    through: Annotated[
        str,
        typer.Option(
            help="codec: encode and decode. semantic: most likely sound of the semantic tokens. "
            "sampled: acoustic generation, another voice each seed."
        ),
    ] = "codec",
    levels: Annotated[
        int | None,
        typer.Option(help="With codec: levels to decode. Default: those that stages predict."),
    ] = None,
    seed: SeedOption = 0,
    sign: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Hear what the codec keeps of a recording, or the semantic tokens of its end."""
    if through not in WAYS:
        raise ConfigError("--through", f"{through!r} is unknown", f"use one of {', '.join(WAYS)}")
    if levels is not None and through != "codec":
        raise ConfigError("--levels", "goes with --through codec only", "leave it out")
    verb = f"through {through}"
    if through == "codec":  # of any length, in bounded memory
        signer = check_outputs([output], source=source, sign=sign)
        loaded = chosen.load()
        started, printed = time.perf_counter(), sys.stdout
        with (
            renamed(PLACES | {"prompt": str(source)}),
            progress_bars(json) as bars,
            seekable(source) as (path, place),
        ):
            pieces = loaded.recode(path, levels=levels, place=place, progress=bars)
            result, seconds = save_pieces(loaded, pieces, output, printed, signer, through=through)
        elapsed = time.perf_counter() - started
        report_on(result, [output], elapsed, json, verb, seconds, through=through)
        return
    with making(chosen, [output], json, source=source, sign=sign, verb=verb) as work:
        pipeline, audio, progress = work.pipeline, work.recording, work.progress
        if through == "sampled":
            work.result = pipeline.acoustic_generation(audio, seed=seed, progress=progress)
        else:
            work.result = pipeline.resynthesize(audio, through="semantic", progress=progress)
        work.result.metadata["through"] = work.report["through"] = through


@with_groups
def stream(
    chosen: Chosen,
    prompt: Annotated[
        Path | None, typer.Argument(help=f"{PROMPT_HELP} Without one, start from nothing.")
    ] = None,
    seconds: SecondsOption = 5.0,
    chunk_seconds: Annotated[
        float, typer.Option(help="Audio per piece; short ones come earlier.")
    ] = 1.0,
    seed: SeedOption = 0,
) -> None:
    """Write the continuation to standard output as it is made: raw 16-bit mono samples.

    segue stream prompt.wav | aplay -f S16_LE -r 16000
    """
    if sys.stdout.isatty():
        note("this writes audio, not text: pipe it to a player or a file")
        raise typer.Exit(2)
    if prompt is not None:
        check_recordings(prompt)
    loaded = chosen.load()
    audio = None
    if prompt is not None:
        audio = read_recording(prompt, loaded.config.prompt.max_seconds)
    from segue.core.audio import pcm16

    output = sys.stdout.buffer  # for samples alone, whatever plugins print
    note(f"16-bit little-endian mono samples at {loaded.sample_rate} Hz")
    with renamed(PLACES | {"prompt": str(prompt)}), progress_bars(False) as progress:
        started, made = time.perf_counter(), 0.0
        for chunk in loaded.stream(
            audio, seconds=seconds, chunk_seconds=chunk_seconds, seed=seed, progress=progress
        ):
            length = chunk.row().shape[0] / chunk.sample_rate
            if not made:
                elapsed = time.perf_counter() - started
                note(f"first {length:.2f} s of audio after {elapsed:.2f} s")
            made += length
            output.write(pcm16(chunk.row()).astype("<i2").tobytes())
            output.flush()
        note(f"{made:.2f} s generated in {time.perf_counter() - started:.1f} s, seed {seed}")


@with_groups
def fill(
    chosen: Chosen,
    source: PromptArgument,
    start: Annotated[float, typer.Option(help="Where the stretch begins, in seconds.")],
    end: Annotated[
        float | None, typer.Option(help="Where it ends. Default: the end of the recording.")
    ] = None,
    output: OutputOption = Path("filled.wav"),
    seed: SeedOption = 0,
    candidates: Annotated[
        int,
        typer.Option(help="Continuations to choose from, where a stage cannot look both ways."),
    ] = 8,
    sign: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Redraw a stretch of a recording, and keep what is before and after it."""
    with making(
        chosen, [output], json, source=source, whole=True, sign=sign, verb="filled"
    ) as work:
        work.result = work.pipeline.fill(
            work.recording,
            start=start,
            end=end,
            candidates=candidates,
            seed=seed,
            progress=work.progress,
        )
        work.report |= {name: work.result.metadata[name] for name in ("gap", "ways")}
