"""`segue train --plan`: print what a training would take, as a table or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from segue.apps.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from segue.core.config import PipelineConfig
    from segue.core.manager import PluginHost
    from segue.training.planning import Hardware, PartEstimate


def show_plan(
    config: PipelineConfig,
    host: PluginHost,
    part: str,
    hardware: Hardware,
    hours: float | None,
    json: bool,
) -> None:
    """Print the estimate of one part, or of all."""
    from segue.training.planning import estimate

    found = estimate(config, host, part, hardware, hours)
    if json:
        parts = [asdict(one) for one in found]
        print_json({"hardware": asdict(hardware), "hours_of_audio": hours, "parts": parts})
        return
    rows = [(_label(key), values) for key, values in _rows(found, config, hours)]
    size = "" if hours is None else f", {hours:,.2f} hours of audio"
    title = f"{config.name}, {hardware.ranks} rank(s){size}"
    for number, one in enumerate(found):
        print_table((one.part, ""), [(key, values[number]) for key, values in rows], title)
        title = ""
    console.print(
        "Activations are estimates: what one counted step keeps; half of it in half precision."
    )
    if any(not one.counted for one in found):
        console.print(
            "~: not counted to the end of a step: three times the forward pass, or six operations"
            " per weight and frame if that is more."
        )


def _rows(
    found: Sequence[PartEstimate], config: PipelineConfig, hours: float | None
) -> list[tuple[str, list[str]]]:
    rows = {
        "parameters": [f"{one.parameters / 1e6:.1f} M" for one in found],
        "trained": [f"{one.trainable / 1e6:.1f} M" for one in found],
        "adversary": [f"{one.adversary / 1e6:.1f} M" if one.adversary else "-" for one in found],
        "GFLOP per unit": [_flops(one) for one in found],
        "per step": [f"{one.per_step:,.0f} {one.unit}s" for one in found],
        "in all": [f"{one.in_all:.3g} {one.unit}s" for one in found],
    }
    if hours is not None:
        rows["epochs"] = [f"{one.in_all / (one.per_epoch or 1):.3g}" for one in found]
    for strategy in ("ddp", "fsdp"):
        rows[f"GiB per rank, {strategy}"] = [_gib(one, strategy) for one in found]
    for kept in ("kept", "checkpointed"):
        rows[f"GiB of activations, {kept}"] = [
            "-" if one.activations is None else f"{one.activations[kept]:.1f}" for one in found
        ]
    if any(one.days is not None for one in found):
        rows["days"] = ["-" if one.days is None else f"{one.days:.3g}" for one in found]
    return list(rows.items())


def _label(key: str) -> str:
    return key.replace("unit", "token or second")


def _flops(one: PartEstimate) -> str:
    return f"{'' if one.counted else '~'}{one.flops / 1e9:.3g} per {one.unit}"


def _gib(one: PartEstimate, strategy: str) -> str:
    memory = one.memory.get(strategy)
    return "-" if memory is None else f"{sum(memory.values()):.2f}"
