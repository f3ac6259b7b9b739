"""Options that several commands share, and how a pipeline is chosen. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from segue.apps.cli.output import note
from segue.apps.cli.progress import loading_bar
from segue.core.errors import ConfigError

if TYPE_CHECKING:
    from segue.core.config import PipelineConfig
    from segue.inference.pipeline import Pipeline

DEFAULT_DOMAIN = "speech"


def complete_domain(incomplete: str) -> list[str]:
    """Return the shipped pipelines that begin so, for the shell."""
    from segue.core.config_files import domain_names, find_domain
    from segue.core.plugins import default_host

    host = default_host()
    names = (n for domain in domain_names(host) for n in find_domain(domain, host).pretrained_names)
    return [name for name in names if name.startswith(incomplete)]


def complete_component(incomplete: str) -> list[str]:
    """Return the components that begin so, for the shell."""
    from segue.core.plugins import default_host

    names = sorted({record.name for record in default_host().records()})
    return [name for name in names if name.startswith(incomplete)]


def _note_replaced(assignments: list[str] | None) -> list[str] | None:
    """Say which value of a key counts: scripts may put further values behind their usual ones."""
    values: dict[str, str] = {}
    for text in assignments or ():
        key, _, value = text.partition("=")
        if values.get(key, value) != value:
            note(f"--set {key}: {value} replaces {values[key]}")
        values[key] = value
    return assignments


DomainOption = Annotated[
    str | None,
    typer.Option(
        "--domain",
        "-d",
        help="Shipped weights: speech, piano, speech/three_stage, ...",
        autocompletion=complete_domain,
    ),
]
AnewOption = Annotated[
    str | None,
    typer.Option(
        "--domain",
        "-d",
        help="A shipped pipeline to train anew, without its weights: speech, piano, ... "
        "(--config DOMAIN/trained_tokenizers keeps those of its tokenizers.)",
        autocompletion=complete_domain,
    ),
]
PipelineOption = Annotated[
    str | None, typer.Option("--pipeline", "-p", help="A pipeline directory or YAML file.")
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", help="A YAML config, or DOMAIN/VARIANT.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override one value: path.to.key=value. May be repeated.",
        callback=_note_replaced,
    ),
]
SecondsOption = Annotated[float, typer.Option("--seconds", help="Audio to make.")]
SeedOption = Annotated[int, typer.Option("--seed", help="The same seed gives the same audio.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Audio file to write; - for standard output.")
]
SignOption = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        "--sign",
        envvar="SEGUE_SIGN",
        metavar="CERT KEY",
        help="Sign files with C2PA manifests: PEM files; needs segue\\[provenance].",
    ),
]
DATA_HELP = (
    "A folder of audio, a CSV manifest, a lhotse CutSet or Shar, WebDataset tars, a URL of one of"
    " these, or a YAML file of several."
)
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP)]
HeldOutOption = Annotated[
    str, typer.Option("--data", help="Recordings: a folder, a CSV manifest, or another source.")
]
ItemsOption = Annotated[int, typer.Option("--items", min=1, help="Most recordings to use.")]
SplitOption = Annotated[str, typer.Option("--split", help="valid (held out), train or all.")]
ReportOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write the figures as JSON.")
]


@dataclass(frozen=True)
class Chosen:
    """The options that choose a pipeline, change its config and say where it is computed."""

    domain: DomainOption = None
    pipeline: PipelineOption = None
    overrides: SetOption = None
    device: DeviceOption = "cpu"

    @property
    def source(self) -> str:
        return chosen_source(self.domain, self.pipeline, "--pipeline")

    def config(self) -> PipelineConfig:
        """Read the config alone; no weights are loaded."""
        from segue.core.config_files import load_config
        from segue.core.plugins import default_host

        return load_config(self.source, default_host(), self.overrides or ()).config

    def load(self) -> Pipeline:
        """Load the pipeline, with a bar that shows it."""
        source, overrides = self.source, self.overrides or ()
        with loading_bar() as progress:
            from segue.inference.pipeline import Pipeline

            return Pipeline.from_pretrained(
                source, overrides=overrides, device=self.device, progress=progress
            )


@dataclass(frozen=True)
class HeldOut:
    """The options that choose recordings to measure on, and where the figures go."""

    data: HeldOutOption
    items: ItemsOption = 50
    split: SplitOption = "valid"
    output: ReportOption = None


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Turn each parameter that is a group, such as ``Chosen``, into one option per field."""
    signature = inspect.signature(command, eval_str=True)
    groups = {p.name: p.annotation for p in signature.parameters.values()}
    groups = {name: group for name, group in groups.items() if is_dataclass(group)}
    options: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name not in groups:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(parameter.annotation, include_extras=True)
        for field in fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            options.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default,
                    annotation=hints[field.name],
                )
            )  # fmt: skip

    @wraps(command)
    def run(**values: Any) -> None:
        built = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **built)

    run.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def chosen_source(domain: str | None, other: str | None, option: str) -> str:
    """Return the one pipeline that the user named, or the default domain."""
    if domain is not None and other is not None:
        raise ConfigError(
            f"--domain {domain} and {option} {other}", "name two pipelines", "leave one out"
        )
    return other or domain or DEFAULT_DOMAIN


def items_of(texts: list[str]) -> list[str]:
    """Return the items, empty ones too, of the comma-separated lists that an option was given."""
    return [item.strip() for item in ",".join(texts).split(",")]


def listed(texts: list[str]) -> list[str]:
    """Return the names in the comma-separated lists that an option was given."""
    return list(filter(None, items_of(texts)))


def whole_numbers(texts: list[str], option: str) -> list[int]:
    """Return the numbers in the comma-separated lists of an option, sorted, each once."""
    parts = items_of(texts)
    if not all(part.isascii() and part.isdigit() for part in parts):
        problem = f"{','.join(texts)!r} is not a list of numbers"
        raise ConfigError(option, problem, f"write {option} 1,2,4")
    return sorted({int(part) for part in parts})


def conditions(where: list[str]) -> dict[str, str]:
    """Return columns and the values that they must have, from ``column=value``."""
    found = {}
    for text in where:
        column, equals, value = text.partition("=")
        if not equals:
            problem = f"{text!r} is not a condition"
            raise ConfigError("--where", problem, "write --where column=value")
        found[column] = value
    return found
