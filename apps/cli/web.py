"""`segue web`: the page on which people try pipelines. Imports no torch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import DeviceOption, SignOption
from segue.apps.cli.output import check_address, note, require
from segue.apps.cli.progress import loading_bar
from segue.apps.cli.saving import chosen_signer


def command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    pipelines: Annotated[
        list[Path] | None,
        typer.Option("--pipeline", "-p", help="A pipeline of your own to offer. May be repeated."),
    ] = None,
    device: DeviceOption = "auto",
    sign: SignOption = None,
    browser: Annotated[bool, typer.Option(help="Open the page in your browser.")] = False,
) -> None:
    """Continue recordings on a web page: upload or record, listen, change, download."""
    require("segue web", "web", "gradio", "matplotlib")
    check_address(host, port)
    with loading_bar():
        from segue.apps.web.page import launch
        from segue.apps.web.studio import Studio

    signer = chosen_signer(sign)
    with tempfile.TemporaryDirectory(prefix="segue-web-") as folder:
        studio = Studio(Path(folder), device, pipelines or (), signer)
        blocks = launch(studio, host=host, port=port, browser=browser)
        note(f"open http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{port}")
        blocks.block_thread()
