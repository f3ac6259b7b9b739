"""`segue serve`. Imports no torch."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from segue.apps.cli.options import DEFAULT_DOMAIN, DeviceOption, SetOption, SignOption
from segue.apps.cli.output import check_address, note, require
from segue.apps.cli.progress import loading_bar
from segue.apps.cli.saving import chosen_signer
from segue.core.errors import ConfigError

MODULES = ("fastapi_offline", "uvicorn", "websockets", "python_multipart", "prometheus_client")

SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Shipped weights or pipeline directories; the first is the default."),
]


def command(
    sources: SourcesArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    sign: SignOption = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SEGUE_API_KEY", help="Ask clients for this key; best by environment."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Let pages of this origin ask, such as http://localhost:3000, or *."),
    ] = None,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Most audio that a request may ask for.")
    ] = 60.0,
    max_prompt_seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="Longest recording that is decoded.")
    ] = 120.0,
    max_upload_mb: Annotated[
        float, typer.Option(min=0.001, max=1024, help="Largest body of a request.")
    ] = 16.0,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests inside at once; others get 429 and Retry-After.")
    ] = 64,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Requests computed together.")] = 8,
    streams: Annotated[int, typer.Option(min=1, max=64, help="Streams computed at once.")] = 4,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds within which a request is answered.")
    ] = 300.0,
    grace: Annotated[
        int, typer.Option(min=0, help="Seconds that running requests have at a shutdown.")
    ] = 30,
) -> None:
    """Serve pipelines over HTTP; http://127.0.0.1:8000/docs describes the requests."""
    require("segue serve", "serve", *MODULES)
    check_address(host, port)
    for origin in allow_origin or ():
        if not re.fullmatch(r"\*|https?://[^/]+", origin):
            fix = "write scheme and host as browsers do: http://localhost:3000"
            raise ConfigError("--allow-origin", f"{origin!r} is no origin", fix)
    signer = chosen_signer(sign)
    with loading_bar() as progress:
        import uvicorn

        from segue.apps.server.app import create_app
        from segue.apps.server.limits import MOST_RETRY_AFTER, Limits
        from segue.apps.server.models import load_models

        names = sources or [DEFAULT_DOMAIN]
        pipelines = load_models(names, overrides or (), device, progress)
    limits = Limits(
        upload_bytes=int(max_upload_mb * 2**20),
        prompt_seconds=max_prompt_seconds,
        seconds=max_seconds,
        requests=max_requests,
        batch=batch,
        streams=streams,
        timeout=timeout,
    )
    app = create_app(pipelines, limits, api_key, signer, allow_origin or ())
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="info",
        timeout_graceful_shutdown=grace,
        # A client that comes back after Retry-After must not meet a connection that just closes.
        timeout_keep_alive=MOST_RETRY_AFTER + 15,
        ws_max_size=limits.upload_bytes,
        server_header=False,
    )
    note(f"serving {', '.join(pipelines)}; http://{host}:{port}/docs describes the requests")
    try:
        uvicorn.Server(config).run()
    except SystemExit as error:  # uvicorn logged why
        raise typer.Exit(1) from error
