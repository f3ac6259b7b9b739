"""The `segue` command. Imports no torch: each command imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from segue.apps.cli import (
    config,
    continue_,
    detect,
    doctor,
    evaluate,
    generate,
    label,
    plot,
    plugins,
    prepare,
    reproduce,
    resynthesize,
    stream,
    tokenize,
    train,
    train_detector,
)
from segue.apps.cli.output import one_sentence

app = typer.Typer(
    name="segue",
    help="Continue, generate and study audio with token language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command("continue")(continue_.command)
app.command("stream")(stream.command)
app.command("generate")(generate.command)
app.command("resynthesize")(resynthesize.command)
app.command("prepare")(prepare.command)
app.command("label")(label.command)
app.command("train")(train.command)
app.command("train-detector")(train_detector.command)
app.command("detect")(detect.command)
app.command("tokenize")(tokenize.command)
app.add_typer(evaluate.app, name="evaluate")
app.command("reproduce")(reproduce.command)
app.add_typer(plot.app, name="plot")
app.add_typer(config.app, name="config")
app.add_typer(plugins.app, name="plugins")
app.command("doctor")(doctor.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        import segue

        typer.echo(f"segue {segue.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Continue, generate and study audio with token language models."""


def main() -> None:
    """Run the command line; what a user can mend ends in one sentence and exit code 2."""
    with one_sentence():
        app(prog_name="segue")


if __name__ == "__main__":
    main()
