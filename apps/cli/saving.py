"""Write the files that generation makes, and report on them. Imports no torch."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from segue.apps.cli.output import console, note, print_json, renamed
from segue.core.errors import OutputError

if TYPE_CHECKING:
    from segue.core.audio import Audio
    from segue.inference.pipeline import Pipeline
    from segue.inference.request import GeneratedAudio
    from segue.plugins.provenance.signing import Signer

STREAM = Path("-")  # standard input or output


def read_recording(path: Path, last_seconds: float | None = None) -> Audio:
    """Read an audio file, or standard input for ``-``; at most ``last_seconds`` from its end."""
    from segue.sound.reading import read_audio

    with seekable(path) as (file, place):
        return read_audio(file, last_seconds=last_seconds, place=place)


def check_recordings(*paths: Path) -> None:
    """Refuse files that cannot be read as audio, before PyTorch is imported and weights are loaded.

    Raises:
        AudioError: if one is missing, empty or not audio.
    """
    from segue.sound.opening import open_sound

    for path in paths:
        if path != STREAM:
            with open_sound(path, str(path), most_samples=1):
                pass


@contextmanager
def seekable(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield a file that can be read from any place, and its name for errors.

    Standard input, ``-``, is copied: a pipe cannot be searched for its end.
    """
    if path != STREAM:
        yield path, str(path)
        return
    with tempfile.NamedTemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name), "standard input"


def metadata_path(path: Path) -> Path:
    """Return where the description of an audio file goes."""
    return path.with_name(f"{path.name}.json")


def check_outputs(
    outputs: Sequence[Path],
    *,
    source: Path | None = None,
    picture: Path | None = None,
    sign: tuple[Path, Path] | None = None,
) -> Signer | None:
    """Refuse places and suffixes that cannot be written; return what signs the files, if any.

    Args:
        source: the recording that is read; it must be audio, and not be overwritten.
        sign: PEM files of a certificate and its private key, to sign audio files with.

    Raises:
        AudioError: if the source is missing or not audio.
        OutputError: if one cannot be written, or not signed.
        PluginError: if they are to be signed and the extra for it is missing.
    """
    if source is not None:
        check_recordings(source)
    from segue.core.audio import check_format
    from segue.core.files import check_writable

    if sign is not None and STREAM in outputs:
        raise OutputError("--sign", "needs a file", "name one with --output")
    if STREAM in outputs and len(outputs) > 1:
        raise OutputError("--count", "needs a file for each result", "name one with --output")
    outputs = [path for path in outputs if path != STREAM]
    for path in outputs:
        check_format(path)
    if picture is not None:
        from segue.apps.spectrogram import check_picture

        check_picture(picture)
    pictures = [] if picture is None else [picture]
    for path in (*outputs, *map(metadata_path, outputs), *pictures):
        check_writable(path)
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise OutputError(str(path), "is the recording to be read", "name another file")
    signer = chosen_signer(sign)
    if signer is not None:
        from segue.plugins.provenance.signing import check_signable

        for path in outputs:
            check_signable(path)
    return signer


def chosen_signer(sign: tuple[Path, Path] | None) -> Signer | None:
    """Return what signs with the PEM files of ``--sign``, or None without them."""
    if sign is None:
        return None
    from segue.plugins.provenance.signing import Signer

    return Signer(*sign)


def save_audio(
    pipeline: Pipeline,
    audio: GeneratedAudio,
    paths: Sequence[Path],
    picture: Path | None = None,
    title: str = "",
    signer: Signer | None = None,
) -> None:
    """Write each row as an audio file and, beside it, ``<name>.json`` with all that made it.

    Args:
        paths: one for each row; ``-`` writes WAV to standard output, without a description.
        picture: also draw the first row, under ``title``.
        signer: signs the files at the end, when plugins have changed them.

    Raises:
        OutputError: if any of them cannot be written; then none is.
    """
    from segue.core.audio import encoded_audio, write_audio
    from segue.core.files import atomic_path, write_json

    rows = [(row, path) for row, path in enumerate(paths) if path != STREAM]
    with ExitStack() as stack:
        # Files get their names when all are on disk, an audio file before its description.
        for row, path in rows:
            description = stack.enter_context(atomic_path(metadata_path(path)))
            sound = stack.enter_context(atomic_path(path))
            with renamed({str(sound): path, str(description): metadata_path(path)}):
                write_audio(sound, audio.row(row), audio.sample_rate)
                write_json(description, audio.described(row))
        if picture is not None:
            from segue.apps.spectrogram import draw_spectrogram

            drawing = stack.enter_context(atomic_path(picture))
            with renamed({str(drawing): picture}):
                draw_spectrogram(audio, drawing, title)
    for row, path in rows:
        _finish(pipeline, path, audio.described(row), signer)
    if STREAM in paths:
        # As one piece: a WAV header is completed at the end, which a pipe cannot go back for.
        wave = audio.row(paths.index(STREAM))
        sys.stdout.buffer.write(encoded_audio(wave, audio.sample_rate))
        sys.stdout.buffer.flush()


def save_pieces(
    pipeline: Pipeline,
    pieces: Iterator[GeneratedAudio],
    path: Path,
    printed: TextIO,
    signer: Signer | None = None,
    **more: Any,
) -> tuple[GeneratedAudio, float]:
    """Write one recording that comes in pieces; see ``save_audio``.

    Args:
        printed: standard output, for the path ``-``.
        more: further entries of the description.

    Returns:
        The last piece, with the notes of all, and the seconds that were written.
    """
    from segue.core.audio import open_writer
    from segue.core.files import atomic_path, write_json

    samples, notes, beside = 0, dict[str, str](), metadata_path(path)
    audio = next(pieces)  # before a folder is made: the recording may be unusable
    with ExitStack() as stack:
        if path == STREAM:
            sound = Path(stack.enter_context(tempfile.NamedTemporaryFile(suffix=".wav")).name)
        else:
            description = stack.enter_context(atomic_path(beside))
            sound = stack.enter_context(atomic_path(path))
            stack.enter_context(renamed({str(sound): path, str(description): beside}))
        with open_writer(sound, pipeline.sample_rate) as write:
            for audio in chain([audio], pieces):  # noqa: B020  # the last one is described
                write(audio.row())
                samples += audio.row().shape[0]
                for text in audio.notes[0]:  # a kind of note that ends in a figure is said once
                    notes.setdefault(text.rpartition(" ")[0], text)
        audio.notes[0] = tuple(notes.values())
        del audio.metadata["start_sample"]  # of the last piece alone
        audio.metadata |= more
        if path == STREAM:
            with sound.open("rb") as file:
                shutil.copyfileobj(file, printed.buffer)
            printed.buffer.flush()
        else:
            write_json(description, audio.described(0))
    if path != STREAM:
        _finish(pipeline, path, audio.described(0), signer)
    return audio, samples / pipeline.sample_rate


def _finish(
    pipeline: Pipeline, path: Path, metadata: dict[str, Any], signer: Signer | None
) -> None:
    """Let plugins see a written file, then sign it: a signature covers what they changed."""
    with redirect_stdout(sys.stderr):  # standard output is for results
        pipeline.host.call_hook("segue_output_written", path=path, metadata=metadata)
    if signer is not None:
        signer.sign(path, metadata)


def report_on(
    audio: GeneratedAudio,
    paths: Sequence[Path],
    elapsed: float,
    json: bool,
    verb: str = "generated",
    seconds: float | None = None,
    **more: Any,
) -> None:
    """Print what was made: JSON for a machine, or notes and one line.

    Args:
        elapsed: seconds that it took.
        verb: what the line says was done with so many seconds of audio.
        seconds: of new audio; None to count them.
        more: further entries of the JSON.
    """
    if seconds is None:
        samples = sum(len(audio.continuation(row)) for row in range(len(paths)))
        seconds = samples / audio.sample_rate
    notes = audio.notes[0] if len(paths) == 1 else ()
    speed = round(seconds / elapsed, 3) if elapsed else None
    report: Mapping[str, Any] = {
        "output": str(paths[0]),
        "seconds_generated": round(seconds, 3),
        "elapsed_seconds": round(elapsed, 3),
        "real_time_factor": speed,
        "seed": audio.metadata["seed"],
        "pipeline": audio.metadata["pipeline"],
        "sample_rate": audio.sample_rate,
        "notes": list(notes),
        **more,
    }
    to_stdout = STREAM in paths  # then standard output holds audio
    if json and not to_stdout:
        print_json(report)
        return
    for text in notes:
        note(text)
    names = ", ".join(map(str, paths))
    line = (
        f"{names}: {report['seconds_generated']} s {verb} in {elapsed:.1f} s "
        f"({speed}x real time), seed {report['seed']}"
    )
    note(line) if to_stdout else console.print(line)
