"""`segue train-detector`: make examples with a pipeline, train on them, measure, save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.apps.cli.options import (
    Chosen,
    DataOption,
    JsonOption,
    SeedOption,
    with_groups,
)
from segue.apps.cli.output import console
from segue.apps.cli.progress import progress_bars
from segue.apps.cli.reports import finish
from segue.core.errors import ConfigError

MODEL, TRAINING, FIGURES, ALSO = "detector", "training", "figures.json", "also"


@with_groups
def command(
    chosen: Chosen,
    data: DataOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory for examples, training, detector, figures."),
    ],
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another domain or pipeline to know the output of. May be repeated."),
    ] = None,
    use: Annotated[str, typer.Option(help="Name of the detector.")] = "spectral_detector.v1",
    items: Annotated[int, typer.Option(min=3, help="Most parts of recordings to use.")] = 480,
    prompt_seconds: Annotated[
        float, typer.Option(min=0.5, max=60, help="Prompt from the start of each.")
    ] = 1.5,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Length of an example.")] = 3.5,
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = 1000,
    learning_rate: Annotated[float, typer.Option(min=1e-8, max=1.0)] = 2e-3,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a detector of what pipelines generate; the same command resumes a stopped run."""
    import torch

    from segue.data.origin_clips import ExamplePlan, make_examples
    from segue.data.sources import read_recordings
    from segue.evaluation.detector import evaluate_detector
    from segue.inference.pipeline import Pipeline
    from segue.training.detector import detector_training, train_detector

    recordings = read_recordings(data)
    loaded = chosen.load()
    plan = ExamplePlan(prompt_seconds, seconds, items, seed=seed)
    training = detector_training(steps, learning_rate, seed)
    torch.manual_seed(seed)
    options = {"sample_rate": loaded.sample_rate}
    detector = loaded.host.create("detector", use, options, place="--use").to(loaded.device)
    with progress_bars(json) as progress:
        clips = make_examples(loaded, recordings, plan, output, progress)
        names = [loaded.config.name]
        for name in also or ():
            other = Pipeline.from_pretrained(name, device=chosen.device)
            if other.sample_rate != loaded.sample_rate:
                problem = f"makes {other.sample_rate} Hz, not {loaded.sample_rate}"
                raise ConfigError(f"--also {name}", problem, "train a detector of its own")
            place = output / ALSO / str(len(names))
            names.append(other.config.name)
            clips += make_examples(other, recordings, plan, place, progress)
        train_detector(
            detector, use, clips, training, output / TRAINING, loaded.host,
            None if progress is None else progress.training_step,
        )  # fmt: skip
        measured = evaluate_detector(detector, clips, progress)
    report: dict[str, Any] = {
        "subject": "detector",
        "detector": use,
        "pipeline": ", ".join(names),
        "data": str(data),
        "prompt_seconds": prompt_seconds,
        "seconds": seconds,
        "learnt_from": sum(not clip.tested for clip in clips),
        "training": {"steps": steps, "learning_rate": learning_rate, "seed": seed},
        **measured,
    }
    _save(detector, output, use, report)
    groups = {"held out": report["figures"], "not in the pipeline": report.get("unseen", {})}
    groups |= {f"of {name}": figures for name, figures in report.get("pipelines", {}).items()}
    groups["coded, by levels"] = report["levels"]
    groups |= {f"after {name}": figures for name, figures in report["disturbed"].items()}
    finish(report, "set", groups, None, json)
    if not json:
        console.print(f"{output / MODEL}: use it with `segue detect FILE --detector DIR`")


def _save(detector: Any, output: Path, use: str, report: dict[str, Any]) -> None:
    from segue.core.checkpoint import save_component
    from segue.core.files import atomic_directory, write_json

    trained = {key: report[key] for key in ("pipeline", "learnt_from", "training", "items")}
    with atomic_directory(output / MODEL) as directory:
        save_component(detector.cpu(), directory, "detector", use, trained)
    write_json(output / FIGURES, report)
