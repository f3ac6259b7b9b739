"""Which metrics `segue evaluate` computes: those that `--metrics` names, or all that fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from segue.apps.cli.output import note
from segue.core.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from segue.core.manager import PluginHost

MetricKind = Literal["metric", "continuation_metric"]
BY_NAME = "is slow; name it in --metrics"


def chosen_metrics(
    host: PluginHost, kind: MetricKind, wanted: str | None, domain: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics that are to be computed, and why others are not.

    Args:
        wanted: names with options, such as ``pesq.v1,visqol.v1:mode=audio``; None takes all that
            are installed, quick and for the domain.
        domain: of the audio, if it is known.

    Raises:
        SegueError: if one that is named cannot be had.
    """
    chosen: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    if wanted is not None:
        for text in filter(None, (part.strip() for part in wanted.split(","))):
            name, options = _with_options(text)
            chosen[text] = host.create(kind, name, options, place="--metrics")
        if not chosen:
            example = "log_mel.v1,pesq.v1" if kind == "metric" else "health.v1,speaker.v1"
            raise ConfigError("--metrics", "names none", f"write --metrics {example}")
        return chosen, left_out
    for record in {record.name: record for record in host.records(kind)}.values():
        try:
            # The class first: what is for another domain need not be built.
            implementation = host.load(host.find(kind, record.name, record.name), record.name)
            domains = implementation.domains
            if domain is not None and domains and domain not in domains:
                continue
            metric = host.create(kind, record.name, {}, place=record.name)
        except (PluginError, ConfigError) as error:
            left_out[record.name] = f"{error.problem}; {error.fix}"
            continue
        if metric.costly:
            left_out[record.name] = BY_NAME
        else:
            chosen[record.name] = metric
    return chosen, left_out


def tell_left_out(report: Mapping[str, Any]) -> None:
    """Say which metrics were not computed, and how many recordings could not be used."""
    for name, reason in report["left_out"].items():
        note(f"{name} was left out: {reason}")
    if report.get("unusable"):
        note(f"{report['unusable']} recordings were left out: too short, or they cannot be read")


def domain_of(host: PluginHost, name: str) -> str | None:
    """The domain that a pipeline's name begins with, such as ``piano`` of ``piano three-stage``."""
    domains = sorted((r.name for r in host.records("domain")), key=len, reverse=True)
    return next((domain for domain in domains if name.startswith(domain)), None)


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
