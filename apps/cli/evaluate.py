"""`segue evaluate`: figures with confidence intervals."""

from __future__ import annotations

import typer

from segue.apps.cli import (
    evaluate_codec,
    evaluate_continuations,
    evaluate_likelihood,
    evaluate_resynthesis,
    evaluate_semantic,
)

app = typer.Typer(no_args_is_help=True, help="Measure tokenizers and pipelines on recordings.")
app.command("codec")(evaluate_codec.command)
app.command("semantic")(evaluate_semantic.semantic)
app.command("pitches")(evaluate_semantic.pitches)
app.command("continuations")(evaluate_continuations.command)
app.command("resynthesis")(evaluate_resynthesis.command)
app.command("likelihood")(evaluate_likelihood.command)
