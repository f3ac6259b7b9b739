"""`segue train --plan`: print what a training would take, as a table or JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from segue.apps.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from segue.core.config import PipelineConfig
    from segue.core.plugins import PluginHost
    from segue.training.cost import Hardware, PartCost


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
