"""`segue evaluate codec`: how close decoded audio comes, at each number of levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.apps.cli.options import (
    DeviceOption,
    DomainOption,
    HeldOutOption,
    ItemsOption,
    JsonOption,
    PipelineOption,
    ReportOption,
    SetOption,
    SplitOption,
    chosen_source,
)
from segue.apps.cli.output import named, note, print_table, progress_bars
from segue.apps.cli.reports import held_out, show, whole_numbers, written
from segue.core.errors import ConfigError, PluginError, SegueError

if TYPE_CHECKING:
    from segue.core.interfaces import Metric
    from segue.core.manager import PluginHost

BY_NAME = "is slow; name it in --metrics"


def command(
    data: HeldOutOption,
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    items: ItemsOption = 50,
    split: SplitOption = "valid",
    levels: Annotated[
        str | None,
        typer.Option(help="Numbers of levels, such as 1,2,4,8. Default: 1, 2, 4 ... all."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Such as pesq.v1,visqol.v1:mode=audio. Default: all that are installed and quick."
        ),
    ] = None,
    output: ReportOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Quality, codebook use and speed of a codec; the rest of the pipeline is not loaded."""
    source = chosen_source(domain, pipeline, "--pipeline")
    with written(output) as write:
        from segue.core.evaluation.codec import evaluate_codec
        from segue.core.evaluation.parts import config_of, load_tokenizer
        from segue.core.interfaces import AcousticCodec
        from segue.core.manager import default_host

        host = default_host()
        config = config_of(source, host, overrides or ())
        codec = load_tokenizer(config, "codec", host, device)
        assert isinstance(codec, AcousticCodec)
        total = codec.spec.num_levels
        counts = _powers(total) if levels is None else whole_numbers(levels, "--levels")
        chosen, left_out = _metrics(host, metrics)
        with named({"levels": "--levels"}), progress_bars(json) as progress:
            figures = evaluate_codec(
                codec, config.prompt, held_out(data, items, split), chosen, counts, progress
            )
        report = {
            "subject": "codec",
            "pipeline": config.name,
            "codec": config.codec.use,
            "spec": codec.spec.to_json(),
            "data": str(data),
            "split": split,
            **figures,
            "left_out": left_out,
        }
        write(report)
    show(report, "levels", figures["levels"], json)
    if not json:
        _show_rest(report)


def _powers(total: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return sorted({2**power for power in range(total.bit_length()) if 2**power < total} | {total})


def _metrics(host: PluginHost, wanted: str | None) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics that are to be computed, and why others are not."""
    chosen: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    if wanted is not None:
        for text in filter(None, (part.strip() for part in wanted.split(","))):
            name, options = _with_options(text)
            chosen[text] = host.create("metric", name, options, place="--metrics")
        if not chosen:
            raise ConfigError("--metrics", "names none", "write --metrics log_mel.v1,pesq.v1")
        return chosen, left_out
    for name in sorted({record.name for record in host.records("metric")}):
        try:
            metric = host.create("metric", name, {}, place=name)
        except (PluginError, ConfigError) as error:
            left_out[name] = _reason(error)
            continue
        if metric.costly:
            left_out[name] = BY_NAME
        else:
            chosen[name] = metric
    return chosen, left_out


def _reason(error: SegueError) -> str:
    return f"{error.problem}; {error.fix}"


def _with_options(text: str) -> tuple[str, dict[str, Any]]:
    """``visqol.v1:mode=audio:lattice=true`` as a name and options."""
    from segue.core.yaml_files import YAML_ERRORS, parse_yaml

    name, *settings = text.split(":")
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        try:
            options[key] = parse_yaml(value)
        except YAML_ERRORS as error:
            raise ConfigError("--metrics", f"{value!r} is no YAML", "quote the value") from error
        if not equals:
            raise ConfigError("--metrics", f"{setting!r} sets nothing", "write NAME:option=value")
    return name, options


def _show_rest(report: dict[str, Any]) -> None:
    rows = [
        (
            name,
            f"{row['kbit_per_second']:g}",
            f"{report['encode_speed']:g}",
            f"{row['decode_speed']:g}",
        )
        for name, row in report["levels"].items()
    ]
    print_table(("levels", "kbit/s", "encode x real time", "decode x real time"), rows)
    print_table(
        ("codebook", "codes used", "perplexity / codes", "kbit/s by entropy", "frames"),
        [
            (book["level"], f"{book['used']:.1%}", f"{book['perplexity']:.1%}",
             f"{book['entropy_kbit_per_second']:.3f}", book["frames"])
            for book in report["codebooks"]
        ],
    )  # fmt: skip
    for name, reason in report["left_out"].items():
        note(f"{name} was left out: {reason}")
    if report["unusable"]:
        note(f"{report['unusable']} recordings were left out: too short, or they cannot be read")
