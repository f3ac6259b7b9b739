"""`segue train`: one part of a pipeline, or all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.apps.cli.options import (
    DATA_HELP,
    ConfigOption,
    DeviceOption,
    DomainOption,
    JsonOption,
    SetOption,
    chosen_source,
)
from segue.apps.cli.output import console, print_json, progress_bars
from segue.core.errors import ConfigError

if TYPE_CHECKING:
    from segue.core.manager import PluginHost

CONFIG = "config.yaml"


def command(
    part: Annotated[str, typer.Argument(help="semantic_tokenizer, codec, stages.NAME, or all.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Training directory; resumes what it holds."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help=DATA_HELP)] = None,
    domain: DomainOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it would take instead; writes nothing.")
    ] = False,
    num_ranks: Annotated[int, typer.Option("--ranks", help="Plan: GPUs.")] = 1,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Plan: H100, A100, ...")] = None,
    gpu_tflops: Annotated[
        float | None, typer.Option("--gpu-tflops", help="Plan: peak of one GPU.")
    ] = None,
    mfu: Annotated[float, typer.Option("--mfu", help="Plan: share of the peak reached.")] = 0.4,
    hours: Annotated[
        float | None,
        typer.Option("--hours-of-audio", help="Plan: size of the data, if it is not there yet."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train; the same command goes on where a run was stopped or killed."""
    from segue.core.building import checked_device
    from segue.core.config.load import load_config
    from segue.core.files import check_writable
    from segue.core.manager import default_host
    from segue.training.parts import Workspace, train_all, train_part
    from segue.training.ranks import device_of_rank, disconnect, ranks

    if plan:
        from segue.apps.cli.plan import show_plan
        from segue.training.planning import Hardware, hours_of_data

        hardware = Hardware(num_ranks, gpu, gpu_tflops, mfu)
        host = default_host()
        loaded = load_config(chosen_source(domain, config, "--config"), host, overrides or ())
        size = hours_of_data(data, output) if hours is None else hours
        show_plan(loaded.config, host, part, hardware, size, json)
        return
    if output is None:
        raise ConfigError("--output", "is missing", "name a training directory: -o runs/mine")
    check_writable(output / CONFIG)
    quiet = json or not ranks().first
    host = default_host()
    _add_tensorboard(host)
    loaded = load_config(chosen_source(domain, config, "--config"), host, overrides or ())
    with _tidied(output), progress_bars(quiet) as progress, _then(disconnect):
        workspace = Workspace(
            loaded.config,
            output,
            data,
            host,
            checked_device(device_of_rank(device)),
            None if quiet else _report,
            progress,
        )
        result = train_all(workspace) if part == "all" else train_part(workspace, part)
    if not ranks().first:
        return
    if json:
        print_json({"part": part, "checkpoint": str(result)})
    else:
        console.print(f"{part}: {result}")


def _add_tensorboard(host: PluginHost) -> None:
    """Let TensorBoard's logger hear of the training, as it would if it were installed by itself."""
    from segue.plugins.loggers import tensorboard

    if all(status.entry_point != tensorboard.__name__ for status in host.statuses()):
        host.register(tensorboard, "segue")


@contextmanager
def _then(work: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        work()


@contextmanager
def _tidied(directory: Path) -> Iterator[None]:
    """Take a new directory away again if training could not even start in it."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if new and directory.is_dir() and [path.name for path in directory.iterdir()] == [CONFIG]:
            (directory / CONFIG).unlink()
        with suppress(OSError):  # not empty: it is worth keeping
            for path in new:
                path.rmdir()
        raise


def _report(part: str, step: int, steps: int, losses: Mapping[str, float]) -> None:
    figures = "  ".join(f"{key} {value:.4g}" for key, value in losses.items())
    console.print(f"{part} {step}/{steps}  {figures}")
