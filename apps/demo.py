"""Continue a speech prompt and a piano prompt: the program behind `make demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.apps.cli.output import (
    clear_errors,
    console,
    note,
    print_table,
    renamed,
)
from segue.apps.cli.progress import progress_bars
from segue.apps.cli.saving import check_outputs, metadata_path, save_audio
from segue.inference.threads import prepare_threads

PROMPT_SECONDS = 4.0
DOMAINS = ("speech", "piano")


def run(
    output: Annotated[Path, typer.Option(help="Folder for WAVs, pictures and demo.json.")],
    prompt: Annotated[Path | None, typer.Option(help="Your own recording.")] = None,
    domain: Annotated[str | None, typer.Option(help="speech or piano.")] = None,
    seconds: Annotated[float, typer.Option(help="Audio to add to each prompt.")] = 6.0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a continuation, a picture and a line of figures for each prompt."""
    from segue.core.files import check_writable, write_json

    if prompt is not None:
        chosen = {domain or "speech": prompt}
    else:
        chosen = {name: default_prompt(name) for name in ((domain,) if domain else DOMAINS)}
    for name, path in chosen.items():
        check_outputs([_target(output, name)], source=path, picture=output / f"{name}.png")
    check_writable(output / "demo.json")
    rows = [_continue(name, path, output, seconds, seed) for name, path in chosen.items()]
    write_json(output / "demo.json", rows)
    columns = ("domain", "prompt", "seconds generated", "real-time factor", "seed", "checkpoint")
    # Paths by their last two parts; demo.json has them whole.
    cells = [["/".join(str(row[column]).split("/")[-2:]) for column in columns] for row in rows]
    print_table(columns, cells, "Demo")
    for row in rows:
        console.print(f"{row['domain']}: {row['output']}  {row['picture']}")
        console.print(f"  checkpoint: {row['checkpoint']}")
        console.print(f"  weights: {row['description']}")


def default_prompt(domain: str) -> Path:
    """Return the recording that comes with a domain."""
    from segue.core.config_files import find_domain
    from segue.core.plugins import default_host

    return find_domain(domain, default_host()).prompt


def _target(output: Path, name: str) -> Path:
    return output / f"{name}.wav"


def _continue(name: str, prompt: Path, output: Path, seconds: float, seed: int) -> dict[str, Any]:
    from segue.core.config_files import find_config
    from segue.inference.pipeline import Pipeline
    from segue.sound.reading import read_audio

    # The first seconds: the recording's own continuation stays unused, to compare with.
    audio = read_audio(prompt, first_seconds=PROMPT_SECONDS)
    pipeline = Pipeline.from_pretrained(name)
    started = time.perf_counter()
    places = {"prompt": prompt, "seconds": "--seconds", "seed": "--seed"}
    with renamed(places), progress_bars(quiet=False) as progress:
        result = pipeline.continue_batch([audio], seconds=seconds, seed=seed, progress=progress)
    elapsed = time.perf_counter() - started
    target, picture = _target(output, name), output / f"{name}.png"
    title = f"{name}: {prompt.name} and its continuation, seed {seed}"
    save_audio(pipeline, result, [target], picture, title)
    for line in result.notes[0]:
        note(f"{name}: {line}")
    generated = result.continuation().shape[0] / result.sample_rate
    return {
        "domain": name,
        "prompt": str(prompt),
        "seconds generated": round(generated, 2),
        "real-time factor": round(generated / elapsed, 2),
        "seed": seed,
        "checkpoint": str(find_config(name, pipeline.host).parent),
        "description": pipeline.config.description,
        "elapsed_seconds": round(elapsed, 2),
        "output": str(target),
        "metadata": str(metadata_path(target)),
        "picture": str(picture),
    }


def main() -> None:
    """Run the demo; errors that the user can fix end in one sentence and exit code 2."""
    with clear_errors():
        prepare_threads()
        typer.run(run)


if __name__ == "__main__":
    main()
