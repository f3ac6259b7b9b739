"""Measure stages that can replace each other, and write their speeds into a pipeline's config.

    python benchmarks/stage_choice.py PIPELINE [--device cpu] [--seconds 10] [--repeats 3] [--write]

PIPELINE is a directory whose config lets a stage stand ``instead_of`` another. Each is timed in the
whole pipeline, alone in its place: one row to the end, one streamed, and sixteen together. With
``--write`` the config's ``speed`` of each is replaced, from which `auto` then chooses.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import yaml

from benchmarks.timing import machine, median_seconds
from segue.core.audio import Audio, read_audio
from segue.core.config import StageConfig, Work
from segue.core.config_files import find_domain
from segue.core.pipeline import Pipeline
from segue.core.plugins import default_host

ROWS = 16


def speeds(
    pipeline: Pipeline, stage: StageConfig, prompt: Audio, seconds: float, repeats: int
) -> dict[Work, float]:
    """Return the audio seconds a second of the pipeline with this stage in its place."""
    device = pipeline.device.type
    first = {one.name: dict(one.speed) for one in pipeline.config.stages}
    for one in pipeline.config.stages:  # the only one with a speed is the fastest
        one.speed.clear()
    stage.speed[device] = dict.fromkeys(get_args(Work), 1.0)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def run(work: Work) -> None:
        if work == "stream":
            for _ in pipeline.stream(prompt, seconds=seconds):
                pass
        else:
            rows = ROWS if work == "batch" else 1
            pipeline.continue_batch([prompt] * rows, seconds=seconds)
        wait()

    found: dict[Work, float] = {}
    for work in get_args(Work):
        rows = ROWS if work == "batch" else 1
        took = median_seconds(lambda work=work: run(work), repeats)  # type: ignore[misc]
        found[work] = round(rows * seconds / took, 2)
        print(f"  {stage.name}, {work}: {found[work]:.3g} audio seconds a second", flush=True)
    for one in pipeline.config.stages:
        one.speed.clear()
        one.speed.update(first[one.name])
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
    found = {
        stage.name: speeds(pipeline, stage, prompt, arguments.seconds, arguments.repeats)
        for stage in config.stages
        if stage.name in places or config.replaces(stage)
    }
    if not found:
        parser.error(f"no stage of {file} stands instead_of another")
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
