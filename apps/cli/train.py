"""`segue train`: one part of a pipeline, or all of it, or a plan of what that would take."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.apps.cli.options import (
    DATA_HELP,
    AnewOption,
    ConfigOption,
    DeviceOption,
    JsonOption,
    SetOption,
    chosen_source,
)
from segue.apps.cli.output import console, note, print_json, print_table
from segue.apps.cli.progress import training_progress
from segue.core.errors import ConfigError

if TYPE_CHECKING:
    from segue.core.config import PipelineConfig
    from segue.core.plugins import PluginHost
    from segue.training.cost import Hardware, PartCost

CONFIG = "config.yaml"


def command(
    part: Annotated[str, typer.Argument(help="semantic_tokenizer, codec, stages.NAME, or all.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Training directory; resumes what it holds."),
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    domain: AnewOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    plan: Annotated[
        bool, typer.Option("--plan", help="Estimate what it would take instead; writes nothing.")
    ] = False,
    num_ranks: Annotated[int, typer.Option("--ranks", min=1, help="Plan: GPUs.")] = 1,
    gpu: Annotated[str | None, typer.Option(help="Plan: H100, A100, ...")] = None,
    gpu_tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Plan: peak of one GPU.")
    ] = None,
    mfu: Annotated[
        float, typer.Option(min=0.001, max=1, help="Plan: share of the peak reached.")
    ] = 0.4,
    hours: Annotated[
        float | None,
        typer.Option(
            "--hours-of-audio", min=0.001, help="Plan: size of the data, if it is not there yet."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train; the same command goes on where a run was stopped or killed."""
    from segue.core.checkpoint import checked_device
    from segue.core.config_files import load_config
    from segue.core.files import check_writable
    from segue.core.plugins import default_host
    from segue.training.ranks import device_of_rank, disconnect, ranks
    from segue.training.workspace import Workspace, train_all, train_part

    source = chosen_source(domain, config, "--config")
    if plan:
        from segue.training.cost import Hardware, hours_of_data

        hardware = Hardware(num_ranks, gpu, gpu_tflops, mfu)
        host = default_host()
        loaded = load_config(source, host, overrides or (), anew=True)
        size = hours_of_data(data, output) if hours is None else hours
        show_plan(loaded.config, host, part, hardware, size, json)
        return
    if output is None:
        raise ConfigError("--output", "is missing", "name a training directory: -o runs/mine")
    check_writable(output / CONFIG)
    quiet = json or not ranks().first
    host = default_host()
    _add_tensorboard(host)
    loaded = load_config(source, host, overrides or (), anew=True)
    with stopped(quiet), _removed_if_unused(output), training_progress(quiet) as progress:
        workspace = Workspace(
            loaded.config,
            output,
            data,
            host,
            checked_device(device_of_rank(device)),
            None if progress is None else progress.training_step,
            progress,
            None if quiet else note,
        )
        try:
            result = train_all(workspace) if part == "all" else train_part(workspace, part)
        finally:
            disconnect()
    if not ranks().first:
        return
    if json:
        print_json({"part": part, "checkpoint": str(result)})
    else:
        console.print(f"{part}: {result}")


def _add_tensorboard(host: PluginHost) -> None:
    """Register the TensorBoard logger, unless the user's registry names it already."""
    from segue.plugins.loggers import tensorboard

    if all(status.entry_point != tensorboard.__name__ for status in host.statuses()):
        host.register(tensorboard, "segue")


@contextmanager
def stopped(quiet: bool) -> Iterator[None]:
    """Say where a training stopped and how to go on, after Ctrl-C or SIGTERM."""
    from segue.training.stopping import Stopped

    try:
        yield
    except KeyboardInterrupt as stop:
        number = stop.signal_number if isinstance(stop, Stopped) else 0
        if not quiet:
            note(str(stop) or "stopped; the same command goes on")
        sys.exit(128 + (number or signal.SIGINT))


@contextmanager
def _removed_if_unused(directory: Path) -> Iterator[None]:
    """Remove new directories again if training could not even start in them.

    A config stays: another start of the same training may have written it.
    """
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        below = sorted(directory.rglob("*"), reverse=True) if directory in new else ()
        for path in (*below, *new):
            with suppress(OSError):  # not empty: it is worth keeping
                path.rmdir()
        raise


def show_plan(
    config: PipelineConfig,
    host: PluginHost,
    part: str,
    hardware: Hardware,
    hours: float | None,
    json: bool,
) -> None:
    """Print the cost of one part, or of all."""
    from segue.training.cost import training_cost

    costs = training_cost(config, host, part, hardware, hours)
    if json:
        parts = [asdict(one) for one in costs]
        print_json({"hardware": asdict(hardware), "hours_of_audio": hours, "parts": parts})
        return
    size = "" if hours is None else f", {hours:,.2f} hours of audio"
    title = f"{config.name}, {hardware.ranks} rank(s){size}"
    for one in costs:
        print_table((one.part, ""), _rows(one), title)
        title = ""
    console.print(
        "Activations are estimates: what one counted step keeps; half of it in half precision."
    )
    if any(not one.counted for one in costs):
        console.print(
            "~: not counted to the end of a step: three times the forward pass, or six operations"
            " per weight and frame if that is more."
        )


def _rows(one: PartCost) -> list[tuple[str, str]]:
    unsure = "" if one.counted else "~"
    rows = [
        ("parameters", f"{one.parameters / 1e6:.1f} M"),
        ("trained", f"{one.trainable / 1e6:.1f} M"),
        ("adversary", f"{one.adversary / 1e6:.1f} M" if one.adversary else "-"),
        ("GFLOP per token or second", f"{unsure}{one.flops / 1e9:.3g} per {one.unit}"),
        ("per step", f"{one.per_step:,.0f} {one.unit}s"),
        ("in all", f"{one.in_all:.3g} {one.unit}s"),
    ]
    if one.per_epoch is not None:
        rows.append(("epochs", f"{one.in_all / one.per_epoch:.3g}"))
    for strategy in ("ddp", "fsdp"):
        memory = one.memory.get(strategy)
        gib = "-" if memory is None else f"{sum(memory.values()):.2f}"
        rows.append((f"GiB per rank, {strategy}", gib))
    for kept in ("kept", "checkpointed"):
        gib = "-" if one.activations is None else f"{one.activations[kept]:.1f}"
        rows.append((f"GiB of activations, {kept}", gib))
    if one.days is not None:
        rows.append(("days", f"{one.days:.3g}"))
    return rows
