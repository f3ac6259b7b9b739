"""The `segue` command. Imports no torch: each command imports what it needs when it runs."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
from typing import Annotated

import typer

from segue.apps.cli import (
    config,
    detect,
    doctor,
    evaluate,
    generation,
    label,
    new_plugin,
    plot,
    plugins,
    prepare,
    reproduce,
    serve,
    tokenize,
    train,
    train_detector,
    web,
)
from segue.apps.cli.output import DEBUG, clear_errors
from segue.apps.cli.program import TRACEBACK, Program
from segue.inference.bars import bars_by_default
from segue.inference.threads import VARIABLE, prepare_threads

#: Python's garbage collector would search through all modules some hundred times while they are
#: imported, which takes a tenth of the time.
COLLECT_AFTER = (50_000, 10, 10)

app = Program(
    name="segue",
    help="Continue, generate and study audio with token language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command("continue")(generation.continue_)
app.command("stream")(generation.stream)
app.command("generate")(generation.generate)
app.command("fill")(generation.fill)
app.command("resynthesize")(generation.resynthesize)
app.command("serve")(serve.command)
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
app.command("web")(web.command)
app.command("new-plugin")(new_plugin.command)
app.command("doctor")(doctor.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        import segue

        typer.echo(f"segue {segue.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads. Default: SEGUE_THREADS, or the cores there are."),
    ] = None,
    traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Show where errors come from, as SEGUE_DEBUG=1.")
    ] = False,
) -> None:
    """Continue, generate and study audio with token language models."""
    if traceback:
        os.environ[DEBUG] = "1"
    prepare_threads(threads)
    bars_by_default(False)  # commands show their own
    if threads is not None:  # wins over a config, also in processes that are started from here
        os.environ[VARIABLE] = str(threads)


def main() -> None:
    """Run the command line; errors that the user can fix end in one sentence and exit code 2."""
    gc.set_threshold(*COLLECT_AFTER)
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)  # a plugin whose compiled code crashes is seen
    with clear_errors():
        app(prog_name="segue")
