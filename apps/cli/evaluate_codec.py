"""`segue evaluate codec`: how close decoded audio comes, at each number of levels."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from segue.apps.cli.evaluate_metrics import chosen_metrics, domain_of, tell_left_out
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
from segue.apps.cli.output import named, print_table, progress_bars
from segue.apps.cli.reports import held_out, show, whole_numbers, written


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
    sample_rate: Annotated[
        int | None,
        typer.Option(min=8000, help="That metrics listen at. Default: the codec's own."),
    ] = None,
    output: ReportOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Quality, codebook use and speed of a codec; the rest of the pipeline is not loaded."""
    source = chosen_source(domain, pipeline, "--pipeline")
    with written(output) as write:
        from segue.core.interfaces import AcousticCodec
        from segue.core.manager import default_host
        from segue.evaluation.codec import evaluate_codec
        from segue.evaluation.parts import config_of, load_tokenizer

        host = default_host()
        config = config_of(source, host, overrides or ())
        codec = load_tokenizer(config, "codec", host, device)
        assert isinstance(codec, AcousticCodec)
        total = codec.spec.num_levels
        counts = _powers(total) if levels is None else whole_numbers(levels, "--levels")
        chosen, left_out = chosen_metrics(host, "metric", metrics, domain_of(host, config.name))
        places = {"levels": "--levels", "sample_rate": "--sample-rate"}
        with named(places), progress_bars(json) as progress:
            figures = evaluate_codec(
                codec, config.prompt, held_out(data, items, split), chosen, counts, progress,
                sample_rate,
            )  # fmt: skip
        report = {
            "subject": "codec",
            "pipeline": config.name,
            "codec": config.codec.use,
            "spec": codec.spec.to_json(),
            "data": str(data),
            "split": split,
            "sample_rate": sample_rate or codec.spec.sample_rate,
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
    tell_left_out(report)
