"""`segue config show | validate | explain | schema`. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from segue.apps.cli.options import JsonOption, SetOption
from segue.apps.cli.output import console, print_json, print_table
from segue.apps.cli.program import Program

app = Program(help="Look at pipeline configs.", no_args_is_help=True)

SourceArgument = Annotated[
    str, typer.Argument(help="speech, speech/VARIANT, a YAML file or a pipeline directory.")
]


@app.command()
def show(source: SourceArgument, overrides: SetOption = None, json: JsonOption = False) -> None:
    """Print the resolved config: everything merged, every default filled in."""
    data = _load(source, overrides).config.model_dump(mode="json", exclude_none=True)
    if json:
        print_json(data)
    else:
        typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def validate(source: SourceArgument, overrides: SetOption = None, json: JsonOption = False) -> None:
    """Check a config and prove that its parts fit together."""
    from segue.core.assembly import assemble
    from segue.core.plugins import default_host

    assembly = assemble(_load(source, overrides).config, default_host())
    rows: list[dict[str, Any]] = [
        {
            "stage": stage.name,
            "predicts": str(stage.target),
            "given": [str(given) for given in stage.given],
            "frames_per_second": str(stage.target.frame_rate),
            "codes": stage.target.codebook_size,
        }
        for stage in assembly.stages
    ]
    if json:
        print_json({"valid": True, "stages": rows})
        return
    cells = [[*list(row.values())[:2], ", ".join(row["given"]), *list(row.values())[3:]]
             for row in rows]  # fmt: skip
    print_table(("stage", "predicts", "given", "frames/s", "codes"), cells)
    console.print(f"{source}: valid")


@app.command()
def explain(
    source: SourceArgument,
    path: Annotated[str, typer.Argument(help="Only what lies below this path.")] = "",
    overrides: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Show where each value comes from: a file, --set, or a default."""
    from segue.core.config_files import leaves
    from segue.core.errors import ConfigError

    loaded = _load(source, overrides)
    values = leaves(loaded.config.model_dump(mode="json"))
    chosen: dict[str, dict[str, Any]] = {
        key: {"value": value, "from": loaded.origins.get(key, "default")}
        for key, value in values.items()
        if not path or key == path or key.startswith(f"{path}.")
    }
    if not chosen:
        tops = sorted({key.split(".")[0] for key in values})
        raise ConfigError(path, "is not in this config", f"start with one of {', '.join(tops)}")
    if json:
        print_json(chosen)
        return
    rows = [(key, entry["value"], entry["from"]) for key, entry in chosen.items()]
    print_table(("path", "value", "from"), rows)


@app.command()
def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .json file. Default: print it.")
    ] = None,
) -> None:
    """Write the JSON Schema of configs, with the options of every installed component.

    Editors complete and check a YAML file that starts with
    # yaml-language-server: $schema=segue.schema.json
    """
    from segue.apps.config_schema import config_schema
    from segue.core.files import write_json
    from segue.core.plugins import default_host

    found = config_schema(default_host())
    if output is None:
        print_json(found)
    else:
        write_json(output, found)
        console.print(f"{output}")


def _load(source: str, overrides: list[str] | None) -> Any:
    from segue.core.config_files import load_config
    from segue.core.plugins import default_host

    return load_config(source, default_host(), overrides or ())
