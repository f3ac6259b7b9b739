"""Measure stages that can replace each other, and write their speeds into a pipeline's config.

    python benchmarks/stage_choice.py PIPELINE [--device cpu] [--seconds 10] [--repeats 3] [--write]

PIPELINE is a directory whose config lets a stage stand ``instead_of`` another. Each is timed in the
whole pipeline, alone in its place: one row to the end, one streamed, and sixteen together. With
``--write`` the config's ``speed`` of each is replaced, from which `auto` then chooses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import get_args

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import yaml

from benchmarks.timing import machine, seconds
from segue.core.audio import Audio
from segue.core.config import Work
from segue.core.config_files import find_domain
from segue.core.plugins import default_host
from segue.inference.pipeline import Pipeline
from segue.sound.reading import read_audio

ROWS = 16


def seconds_of(pipeline: Pipeline, stage: str, work: Work, prompt: Audio, length: float) -> float:
    """Return how long one request takes with a stage in its place."""
    device = pipeline.device.type
    for one in pipeline.config.stages:  # the only one with a speed is the fastest
        one.speed.clear()
        if one.name == stage:
            one.speed[device] = dict.fromkeys(get_args(Work), 1.0)

    def run() -> None:
        if work == "stream":
            for _ in pipeline.stream(prompt, seconds=length):
                pass
        else:
            rows = ROWS if work == "batch" else 1
            pipeline.continue_batch([prompt] * rows, seconds=length)
        if device == "cuda":
            torch.cuda.synchronize()

    return seconds(run)


def speeds(
    pipeline: Pipeline, names: Sequence[str], prompt: Audio, length: float, repeats: int
) -> dict[str, dict[Work, float]]:
    """Return audio seconds a second of the pipeline with each stage, measured in turn."""
    found: dict[str, dict[Work, float]] = {name: {} for name in names}
    for work in get_args(Work):
        took: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(repeats + 1):  # the first is not counted
            for name in names:
                one = seconds_of(pipeline, name, work, prompt, length if turn else 0.5)
                took[name] += [one] if turn else []
        rows = ROWS if work == "batch" else 1
        for name in names:
            found[name][work] = round(rows * length / median(took[name]), 2)
            print(f"  {name}, {work}: {found[name][work]:.3g} audio seconds a second", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio to make")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt", type=Path, help="default: the speech domain's")
    parser.add_argument("--write", action="store_true", help="write the speeds into the config")
    arguments = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    file = arguments.pipeline / "pipeline.yaml"
    pipeline = Pipeline.from_pretrained(arguments.pipeline, device=arguments.device)
    prompt = read_audio(arguments.prompt or find_domain("speech", default_host()).prompt)
    config = pipeline.config
    places = {place.name for stage in config.stages if (place := config.replaces(stage))}
    names = [one.name for one in config.stages if one.name in places or config.replaces(one)]
    if not names:
        parser.error(f"no stage of {file} stands instead_of another")
    found = speeds(pipeline, names, prompt, arguments.seconds, arguments.repeats)
    if arguments.write:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        for stage in data["stages"]:
            if stage["name"] in found:
                kept = stage.get("speed") or {}
                stage["speed"] = {**kept, pipeline.device.type: found[stage["name"]]}
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        print(f"written: {file}")


if __name__ == "__main__":
    main()
