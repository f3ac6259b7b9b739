"""Continue a speech prompt and a piano prompt: what `make demo` runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.apps.cli.output import (
    console,
    fail,
    metadata_path,
    note,
    print_table,
    progress_bars,
    save_audio,
)
from segue.core.errors import SegueError

#: Where a collection of real recordings may lie beside a checkout; used if it is there.
RECORDINGS = Path("../shared/data/speech")
PROMPT_SECONDS = 4.0


def run(
    output: Annotated[Path, typer.Option(help="Folder for WAVs, pictures and demo.json.")],
    prompt: Annotated[Path | None, typer.Option(help="Your own recording.")] = None,
    domain: Annotated[str | None, typer.Option(help="speech or piano.")] = None,
    seconds: Annotated[float, typer.Option(help="Audio to add to each prompt.")] = 6.0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a continuation, a picture and a line of figures for each prompt."""
    from segue.core.files import write_json

    if prompt is not None:
        chosen = {domain or "speech": prompt}
    else:
        domains = (domain,) if domain else ("speech", "piano")
        chosen = {name: default_prompt(name) for name in domains}
    rows = [_continue(name, path, output, seconds, seed) for name, path in chosen.items()]
    write_json(output / "demo.json", rows)
    columns = ("domain", "prompt", "seconds generated", "real-time factor", "seed", "checkpoint")
    print_table(columns, [[row[column] for column in columns] for row in rows], title="Demo")
    for row in rows:
        console.print(f"{row['domain']}: {row['output']}  {row['picture']}")
        console.print(f"  weights: {row['description']}")


def default_prompt(domain: str) -> Path:
    """A real recording of a held-out speaker if there is one at hand, else the shipped prompt."""
    from segue.core.config.load import find_domain
    from segue.core.data.manifest import load_recordings
    from segue.core.manager import default_host

    if domain == "speech" and (RECORDINGS / "manifest.csv").is_file():
        held_out = load_recordings(RECORDINGS / "manifest.csv", "valid")
        usable = [r for r in held_out if r.seconds >= PROMPT_SECONDS and r.path.suffix == ".flac"]
        if usable:
            return usable[0].path
    return find_domain(domain, default_host()).prompt


def _continue(name: str, prompt: Path, output: Path, seconds: float, seed: int) -> dict[str, Any]:
    from segue.apps.spectrogram import draw_spectrogram
    from segue.core.audio import Audio, read_audio
    from segue.core.building import pretrained_path
    from segue.core.pipeline import Pipeline

    started = time.perf_counter()
    pipeline = Pipeline.from_pretrained(name)
    audio = read_audio(prompt)
    # The first seconds: the recording's own continuation stays unused, to compare with.
    count = round(PROMPT_SECONDS * audio.sample_rate)
    audio = Audio(audio.wave[:count], audio.sample_rate, audio.notes)
    with progress_bars(quiet=False) as progress:
        result = pipeline.continue_batch([audio], seconds=seconds, seed=seed, progress=progress)
    elapsed = time.perf_counter() - started
    target = output / f"{name}.wav"
    save_audio(pipeline, result, target)
    picture = output / f"{name}.png"
    draw_spectrogram(result, picture, f"{name}: {prompt.name} and its continuation, seed {seed}")
    for line in result.notes[0]:
        note(f"{name}: {line}")
    generated = result.continuation().shape[0] / result.sample_rate
    return {
        "domain": name,
        "prompt": str(prompt),
        "seconds generated": round(generated, 2),
        "real-time factor": round(generated / elapsed, 2),
        "seed": seed,
        "checkpoint": str(pretrained_path(name, pipeline.host).parent),
        "description": pipeline.config.description,
        "elapsed_seconds": round(elapsed, 2),
        "output": str(target),
        "metadata": str(metadata_path(target)),
        "picture": str(picture),
    }


def main() -> None:
    """Run the demo; what a user can mend ends in one sentence and exit code 2."""
    try:
        typer.run(run)
    except SegueError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
