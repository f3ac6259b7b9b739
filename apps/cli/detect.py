"""`segue detect`: judge whether files were recorded or generated."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.apps.cli.options import DeviceOption, JsonOption
from segue.apps.cli.output import console, print_json, print_table
from segue.apps.cli.progress import progress_bars
from segue.apps.cli.saving import check_recordings
from segue.core.errors import PluginError

if TYPE_CHECKING:
    from segue.core.interfaces import Detector
    from segue.core.progress import Progress
    from segue.inference.detection import Judgement

MADE = ("generated", "partly generated")
MOST_SHOWN = 20  # digits of a file in the table


def command(
    files: Annotated[list[Path], typer.Argument(help="Audio in any format that libsndfile reads.")],
    domain: Annotated[
        str, typer.Option("--domain", "-d", help="A domain with a shipped detector: speech, piano.")
    ] = "speech",
    detector: Annotated[
        Path | None,
        typer.Option(
            "--detector", help="A directory of `segue train-detector`, in place of --domain."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if any file is at least partly generated.")
    ] = False,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Distinguish recordings from audio that Segue generated, second by second.

    Exit code: 0 if every file was judged, whatever the verdicts; with --check 1 if any file is
    generated or partly so; 2 if a file cannot be judged.
    """
    check_recordings(*files)
    from segue.core.checkpoint import checked_device
    from segue.core.plugins import default_host
    from segue.inference.detection import judge_file, load_detector, shipped

    host = default_host()
    directory = detector if detector is not None else shipped(domain, host)
    loaded: Detector = load_detector(directory, host).to(checked_device(device))
    with progress_bars(json) as progress:
        reports = [_report(path, judge_file(loaded, path, progress), progress) for path in files]
    if json:
        print_json(reports)
    else:
        _show(reports)
    if check and any(report["verdict"] in MADE for report in reports):
        raise typer.Exit(1)


def _report(path: Path, judgement: Judgement, progress: Progress | None) -> dict[str, Any]:
    """Return what is known of one file, for JSON; a silent second has no probability."""
    from segue.core.interfaces import ORIGINS
    from segue.plugins.provenance.marks import read_stamp

    made = judgement.seconds[:, ORIGINS.index("generated")].tolist()
    return {
        "file": str(path),
        "verdict": judgement.verdict,
        "probability": {name: round(p, 4) for name, p in judgement.probability.items()},
        "generated_by_second": [None if p != p else round(p, 4) for p in made],
        "stamp": read_stamp(path),
        **_marks(path, progress),
    }


def _marks(path: Path, progress: Progress | None) -> dict[str, Any]:
    """Return watermark and signature of a file; without the extra, no key of the latter."""
    from segue.plugins.provenance.signing import read_signature
    from segue.plugins.provenance.watermark import MARKED, read_watermark

    scores = read_watermark(path, progress)
    marks: dict[str, Any] = {
        "watermark": {
            "seconds_marked": sum(score > MARKED for score in scores if score is not None),
            "score_by_second": [None if score is None else round(score, 2) for score in scores],
        }
    }
    with suppress(PluginError):
        signature = read_signature(path)
        shown = None if signature is None else asdict(signature) | {"state": signature.state}
        marks["signature"] = shown
    return marks


def _show(reports: list[dict[str, Any]]) -> None:
    rows = []
    for report in reports:
        probability = [f"{p:.3f}" for p in report["probability"].values()]
        seconds = "".join(
            "–" if p is None else str(min(9, int(p * 10)))
            for p in _shortened(report["generated_by_second"])
        )
        rows.append((report["file"], report["verdict"], *probability, seconds))
    print_table(("file", "verdict", "P(real)", "P(coded)", "P(generated)", "by second"), rows)
    for report in reports:
        if said := _said(report):
            console.print(f"{report['file']}: {said}")
    if "signature" not in reports[0]:
        console.print("signatures: not looked for without segue[provenance]")
    console.print("by second: P(generated) in tenths, 9 for 0.9 and more, – where it is silent")
    longest = max(len(report["generated_by_second"]) for report in reports)
    if longest > MOST_SHOWN:
        shown = "a digit stands for several seconds of a long file and shows their highest"
        console.print(f"{shown}; --json has every second")


def _said(report: dict[str, Any]) -> str:
    """Return the marks of a file in words."""
    said = ["comment: made by Segue"] if report["stamp"] else []
    if signature := report.get("signature"):
        said.append(
            f"signed by {signature['signer']} with {signature['tool']}, {signature['state']}"
        )
    if marked := report["watermark"]["seconds_marked"]:
        said.append(f"watermark in {marked} s")
    return "; ".join(said)


def _shortened(seconds: list[float | None]) -> list[float | None]:
    """Return at most ``MOST_SHOWN`` figures: the highest of as many seconds each."""
    step = math.ceil(len(seconds) / MOST_SHOWN)
    parts = [seconds[start : start + step] for start in range(0, len(seconds), step)]
    return [max((p for p in part if p is not None), default=None) for part in parts]
