"""`segue plot`: pictures of audio, tokens, reports of `segue evaluate` and training logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import Chosen, JsonOption, listed, with_groups
from segue.apps.cli.output import renamed, wrote
from segue.apps.cli.program import Program
from segue.apps.cli.saving import check_recordings, read_recording

app = Program(
    no_args_is_help=True,
    help="Draw audio, tokens, reports of `segue evaluate`, and logs of `segue train`.",
)

ReportsArgument = Annotated[
    list[Path], typer.Argument(help="Reports of `segue evaluate codec -o`.")
]
FiguresOption = Annotated[list[str], typer.Option(help="Figures of the log, separated by commas.")]
PictureOption = Annotated[Path, typer.Option("--output", "-o", help="A .png file.")]


@app.command("audio")
def audio(
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    output: PictureOption = Path("audio.png"),
    marks: Annotated[
        list[float] | None,
        typer.Option("--mark", min=0, help="Seconds at which to draw a line. May be repeated."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="Part of each to draw, from its start. Default: all."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw spectrograms, one below the other."""
    from segue.apps.spectrogram import draw_spectrograms

    draw_spectrograms(files, output, marks or (), seconds)
    wrote(output, json)


@app.command("tokens")
@with_groups
def tokens(
    chosen: Chosen,
    recording: Annotated[Path, typer.Argument(help="Audio; its end, as of a prompt.")],
    output: PictureOption = Path("tokens.png"),
    json: JsonOption = False,
) -> None:
    """Draw the tokens of a recording: a row for each level, a color for each code."""
    check_recordings(recording)
    from segue.apps.plots import draw_tokens
    from segue.apps.spectrogram import check_picture

    check_picture(output)
    loaded = chosen.load()
    coder = loaded.audio
    audio = read_recording(recording, loaded.config.prompt.max_seconds)
    with renamed({"prompt": recording}):
        prompts = coder.prepared([audio], whole_units=True)
    streams = coder.encode(prompts, coder.gains(prompts))
    specs = loaded.assembly.streams
    draw_tokens(
        {name: (codes.row(0).cpu(), specs[name]) for name, codes in streams.items()}, output
    )
    wrote(output, json)


@app.command("codec")
def codec(
    reports: ReportsArgument,
    output: PictureOption = Path("rate_distortion.png"),
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="Metrics, as pesq.v1,stoi.v1. Default: all that are in every report."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw quality over bit rate: one line per report, one point per number of levels."""
    from segue.apps.plots import draw_rate_distortion

    draw_rate_distortion(reports, output, None if metrics is None else listed(metrics))
    wrote(output, json)


@app.command("codebooks")
def codebooks(
    reports: ReportsArgument,
    output: PictureOption = Path("codebooks.png"),
    json: JsonOption = False,
) -> None:
    """Draw codes used and perplexity at each level, one line per report."""
    from segue.apps.plots import draw_codebooks

    draw_codebooks(reports, output)
    wrote(output, json)


@app.command("training")
def training(
    parts: Annotated[
        list[Path], typer.Argument(help="Parts in training directories, such as runs/mine/codec.")
    ],
    output: PictureOption = Path("training.png"),
    figures: FiguresOption = ["loss"],  # noqa: B006
    json: JsonOption = False,
) -> None:
    """Draw figures over the steps of a training and of its validations."""
    from segue.apps.plots import draw_training

    draw_training(parts, output, listed(figures))
    wrote(output, json)
