"""`segue label`: find the phones of recordings, for ABX errors of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.apps.cli.options import HeldOutOption, ItemsOption, JsonOption, SplitOption
from segue.apps.cli.output import console, note, print_json
from segue.apps.cli.progress import progress_bars
from segue.apps.cli.reports import held_out
from segue.core.errors import AudioError, DataError
from segue.inference.bars import tracked

if TYPE_CHECKING:
    from segue.data.recordings import Recording
    from segue.plugins.metrics.phones import PhoneRecogniser

METRIC = "phones.v1"  # the metric that brings the recogniser


def command(
    data: HeldOutOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")],
    items: ItemsOption = 1000,
    split: SplitOption = "valid",
    json: JsonOption = False,
) -> None:
    """Write the phones that a recogniser hears, with their neighbours.

    The table serves `segue evaluate semantic`. The recogniser belongs to the extra 'metrics' and
    knows English.
    """
    from segue.core.files import check_writable
    from segue.core.plugins import default_host
    from segue.data.recipe import write_manifest

    check_writable(output)
    default_host().create("continuation_metric", METRIC, {}, place=METRIC)  # says what is missing
    from segue.plugins.metrics.phones import PhoneRecogniser

    recordings, unusable = held_out(data, items, split), 0
    rows: list[dict[str, object]] = []
    recogniser = PhoneRecogniser()
    with progress_bars(json) as progress:
        for recording in tracked(recordings, "phones", progress):
            try:
                rows += _rows(recording, recogniser)
            except AudioError:
                unusable += 1
    if unusable == len(recordings):
        raise DataError(
            str(data), "holds no recording that can be read and is a file of its own", "name files"
        )
    if not rows:
        raise DataError(str(data), "holds no three phones in a row", "name recordings of speech")
    write_manifest(output, rows)
    report = {
        "items": len(rows),
        "labels": len({row["label"] for row in rows}),
        "speakers": len({row["speaker"] for row in rows}),
        "unusable": unusable,
        "output": str(output),
    }
    if json:
        print_json(report)
        return
    kinds, speakers = report["labels"], report["speakers"]
    console.print(f"{output}: {len(rows)} phones of {kinds} kinds by {speakers} speakers")
    if unusable:
        note(f"{unusable} recordings cannot be read, or are not files of their own")


def _rows(recording: Recording, recogniser: PhoneRecogniser) -> Iterator[dict[str, object]]:
    from segue.data.audio_files import read_recording
    from segue.plugins.metrics.phones import triphones

    path = Path(recording.where)
    part = recording.start is not None or recording.channel is not None
    if recording.member or part or not path.is_file():
        raise AudioError(recording.place, "is not a file of its own", "name files")
    audio = read_recording(recording)
    for phone, context in triphones(recogniser.spans(audio.wave, audio.sample_rate)):
        yield {
            "path": path.resolve(), "label": phone.label, "speaker": recording.group,
            "context": context, "start": round(phone.start, 3), "end": round(phone.end, 3),
            "split": recording.split,
        }  # fmt: skip
