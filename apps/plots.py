"""Draw reports and logs: quality over bit rate, use of codebooks, curves of training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.apps.spectrogram import new_picture
from segue.core.errors import DataError
from segue.training.guard import LOG

if TYPE_CHECKING:
    from segue.core.spec import TokenSpec

MOST_TICKS = 16
PANEL, TOKEN_PANEL = (4.6, 3.8), (11, 2.6)  # inches
COLUMNS = 3
SMOOTHING = 0.1  # weight of each new value in a running mean
LEAST_POINTS = 50  # of a curve that is smoothed: with fewer, the mean would trail behind


def read_reports(paths: Sequence[Path]) -> dict[str, Any]:
    """Read codec reports, by the stems of their files."""
    reports: dict[str, Any] = {}
    for path in paths:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            assert report["levels"] and report["codebooks"] and report["metrics"]
        except (OSError, ValueError, TypeError, KeyError, AssertionError) as error:
            raise DataError(
                str(path),
                "is not a report on a codec",
                "make one: segue evaluate codec --data FOLDER -o FILE",
            ) from error
        if path.stem in reports:
            raise DataError(str(path), "has the name of another report", "rename one of them")
        reports[path.stem] = report
    return reports


def draw_rate_distortion(
    paths: Sequence[Path], output: Path, metrics: Sequence[str] | None = None
) -> None:
    """Draw each metric's mean and 95 % interval over the bit rates of the numbers of levels.

    Raises:
        DataError: if a report cannot be used, or lacks a metric.
        OutputError: if the picture cannot be drawn there.
    """
    reports = read_reports(paths)
    names = list(metrics) if metrics is not None else _common(reports)
    for stem, report in reports.items():
        for name in names:
            if name not in report["metrics"]:
                has = ", ".join(report["metrics"])
                raise DataError(stem, f"has no metric {name!r}", f"it has {has}")
    if not names:
        fix = "make them with the same --metrics of `segue evaluate codec`"
        raise DataError("the reports", "share no metric", fix)
    rates = {stem: report.get("sample_rate") for stem, report in reports.items()}
    known = {rate for rate in rates.values() if rate}
    if len(known) > 1:
        listed = ", ".join(f"{stem} at {rate}" for stem, rate in rates.items() if rate)
        raise DataError(
            "the reports", f"listened at several sample rates ({listed})",
            f"measure all at the lowest: segue evaluate codec --sample-rate {min(known)} ...",
        )  # fmt: skip
    with _panels(output, len(names)) as panels:
        for panel, name in zip(panels, names, strict=True):
            for stem, report in reports.items():
                _rate_line(panel, stem, report, name)
            described = next(iter(reports.values()))["metrics"][name]
            unit = f" ({described['unit']})" if described["unit"] else ""
            better = "higher" if described["higher_is_better"] else "lower"
            panel.set_ylabel(f"{name}{unit}, {better} is better", parse_math=False)
            panel.set_xlabel("kbit/s")
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
            panel.grid(alpha=0.3, which="both")


def _common(reports: dict[str, Any]) -> list[str]:
    first = next(iter(reports.values()))["metrics"]
    return [name for name in first if all(name in report["metrics"] for report in reports.values())]


def _rate_line(panel: Any, stem: str, report: dict[str, Any], name: str) -> None:
    points = [
        (row["kbit_per_second"], row[name]["mean"], row[name]["low"], row[name]["high"])
        for row in report["levels"].values()
        if row[name]["mean"] is not None
    ]
    if not points:
        return
    rates, means, low, high = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    (line,) = panel.plot(rates, means, marker="o", markersize=4, label=_plain(stem))
    if None not in (*low, *high):  # single items have no interval
        panel.fill_between(rates, low, high, alpha=0.15, color=line.get_color(), linewidth=0)


def draw_codebooks(paths: Sequence[Path], output: Path) -> None:
    """Draw the shares of codes used and of perplexity at each level."""
    reports = read_reports(paths)
    with _panels(output, 2) as panels:
        labels = {"used": "codes used (% of codebook)", "perplexity": "perplexity (% of codebook)"}
        for panel, (key, label) in zip(panels, labels.items(), strict=True):
            for stem, report in reports.items():
                shares = [100 * book[key] for book in report["codebooks"]]
                panel.plot(range(1, len(shares) + 1), shares, marker="o", label=_plain(stem))
            panel.set_ylim(0, 102)
            panel.set_ylabel(label)
            panel.set_xlabel("level")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(alpha=0.3)


def draw_training(paths: Sequence[Path], output: Path, figures: Sequence[str]) -> None:
    """Draw each figure over the steps, in training and in validation.

    Args:
        paths: a part's folders in training directories, or their ``log.jsonl``.
        figures: named as in the log.

    Raises:
        DataError: if a log cannot be read, or none has a figure.
        OutputError: if the picture cannot be drawn there.
    """
    folders = [path.parent if path.is_file() else path for path in paths]
    names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    logs = {name: _read_log(path) for name, path in zip(names, paths, strict=True)}
    known = sorted({key for log in logs.values() for entry in log for key in entry} - {"step"})
    for name in figures:
        if name not in known:
            raise DataError("the logs", f"have no figure {name!r}", f"they have {', '.join(known)}")
    with _panels(output, len(figures)) as panels:
        for panel, name in zip(panels, figures, strict=True):
            for label, log in logs.items():
                _draw_course(panel, log, name, label)
            panel.set_ylabel(name, parse_math=False)
            panel.set_xlabel("step")
            panel.grid(alpha=0.3)


def _read_log(path: Path) -> list[dict[str, float]]:
    file = path if path.is_file() else path / LOG
    try:
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert entries and all("step" in entry for entry in entries)
    except (OSError, ValueError, TypeError, AssertionError) as error:
        raise DataError(
            str(file), "is not a training log", "name a part's folder, such as runs/mine/codec"
        ) from error
    # A resumed run repeats steps: the last entry of each counts.
    return [entry for _, entry in sorted({entry["step"]: entry for entry in entries}.items())]


def _draw_course(panel: Any, log: list[dict[str, float]], name: str, label: str) -> None:
    """Draw a figure as logged (faint), its running mean, and its held-out values."""
    color = None
    for key in (name, f"valid_{name}"):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        if key != name:
            panel.plot(
                steps, values, "--", marker="o", markersize=3, color=color,
                label=f"{_plain(label)}, held out",
            )  # fmt: skip
        elif len(values) < LEAST_POINTS:
            (line,) = panel.plot(steps, values, marker=".", label=_plain(label))
            color = line.get_color()
        else:
            means = tuple(_running_mean(values))
            (line,) = panel.plot(steps, means, label=f"{_plain(label)}, running mean")
            color = line.get_color()
            panel.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)


def _running_mean(values: Sequence[float]) -> Iterator[float]:
    mean = values[0]
    for value in values:
        mean += SMOOTHING * (value - mean)
        yield mean


def draw_tokens(streams: Mapping[str, tuple[Any, TokenSpec]], output: Path) -> None:
    """Draw the codes of every stream over time: one row per level, one color per code.

    Args:
        streams: name → codes ``[Q, N]`` and what they are.

    Raises:
        OutputError: if the picture cannot be drawn there.
    """
    size = (TOKEN_PANEL[0], TOKEN_PANEL[1] * len(streams))
    with new_picture(output, len(streams), 1, size) as panels:
        for panel, (name, (codes, spec)) in zip(panels, streams.items(), strict=True):
            levels, seconds = len(codes), codes.shape[1] / spec.frame_rate
            panel.imshow(
                codes, aspect="auto", interpolation="nearest", cmap="turbo", vmin=0,
                vmax=spec.codebook_size - 1, extent=(0, float(seconds), levels + 0.5, 0.5),
            )  # fmt: skip
            rate = float(spec.frame_rate)
            panel.set_title(f"{name}: {spec.codebook_size} codes, {rate:g} frames a second")
            panel.set_ylabel("level")
            panel.set_yticks(range(1, levels + 1, -(-levels // MOST_TICKS)))
        panels[-1].set_xlabel("seconds")


@contextmanager
def _panels(output: Path, count: int) -> Iterator[list[Any]]:
    """Yield empty panels side by side, the first with a legend; write the picture at the end."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    size = (PANEL[0] * columns, PANEL[1] * rows)
    with new_picture(output, rows, columns, size) as panels:
        for spare in panels[count:]:
            spare.set_visible(False)
        yield panels[:count]
        panels[0].legend(fontsize="small")


def _plain(text: str) -> str:
    """Escape what matplotlib would read as mathematics or as a private label."""
    return text.replace("$", r"\$").lstrip("_") or "report"
