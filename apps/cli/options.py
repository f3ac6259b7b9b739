"""Options that several commands share, and how a pipeline is chosen. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.core.errors import ConfigError

if TYPE_CHECKING:
    from segue.core.pipeline import Pipeline

DEFAULT_DOMAIN = "speech"

DomainOption = Annotated[
    str | None,
    typer.Option("--domain", "-d", help="Shipped weights: speech, piano, speech/three_stage, ..."),
]
PipelineOption = Annotated[
    str | None, typer.Option("--pipeline", "-p", help="A pipeline directory or YAML file.")
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", help="A YAML config, or DOMAIN/VARIANT.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one value: path.to.key=value. May be repeated."),
]
SeedOption = Annotated[int, typer.Option("--seed", help="The same seed gives the same audio.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]
ChunkOption = Annotated[
    float | None,
    typer.Option(
        "--chunk-seconds", help="Most new audio of one window of a stage; as in `segue stream`."
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Audio file to write.")]
DATA_HELP = (
    "A folder of audio, a CSV manifest, a lhotse CutSet or Shar, WebDataset tars, a URL of one of"
    " these, or a YAML file of several."
)
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP)]
HeldOutOption = Annotated[
    str, typer.Option("--data", help="Recordings: a folder, a CSV manifest, or another source.")
]
ItemsOption = Annotated[int, typer.Option("--items", min=1, help="Recordings used, at most.")]
SplitOption = Annotated[str, typer.Option("--split", help="valid (held out), train or all.")]
ReportOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write the figures as JSON.")
]


def chosen_source(domain: str | None, other: str | None, option: str) -> str:
    """The one thing the user named; the default domain if they named none."""
    if domain is not None and other is not None:
        raise ConfigError(
            f"--domain {domain} and {option} {other}", "name two pipelines", "leave one out"
        )
    return other or domain or DEFAULT_DOMAIN


def load_pipeline(
    domain: str | None, pipeline: str | None, overrides: list[str] | None, device: str
) -> Pipeline:
    """The pipeline that ``--domain``, ``--pipeline``, ``--set`` and ``--device`` ask for."""
    source = chosen_source(domain, pipeline, "--pipeline")
    from segue.core.pipeline import Pipeline

    return Pipeline.from_pretrained(source, overrides=overrides or (), device=device)
