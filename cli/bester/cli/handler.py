"""`bester handler`: runs a Python handler."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from bester.cli.options import config_option, key_option, load, log_level_option, log_option, server_key_option


@click.command()
@config_option
@click.option(
    "--fabric",
    metavar="URL",
    multiple=True,
    help="Address of the broker, once for each of several; by default BESTER_FABRIC, else the configuration.",
)
@key_option
@server_key_option
@click.option("--types", metavar="T,T", help="Message types to serve; by default BESTER_TYPES, else all of the app's.")
@click.option("--name", metavar="NAME", help="Label at the server; by default BESTER_NAME.")
@click.option("--workers", type=int, default=1, show_default=True, metavar="N", help="Processes to run.")
@click.option("--reload", is_flag=True, help="Start anew when a Python file of the app changes.")
@log_option
@log_level_option
@click.argument("app", metavar="MODULE:APP")
def handler(
    config_path: Path | None, fabric: Sequence[str], key: str | None, server_key: str | None, types: str | None,
    name: str | None, workers: int, reload: bool, log_format: str, log_level: str, app: str,
) -> int:  # fmt: skip
    """Run a Python handler: APP is an attribute of MODULE, which may be a file here."""
    if not fabric and (config_path is not None or not os.environ.get("BESTER_FABRIC")):
        config = load(config_path)
        fabric = config.fabric.connect
        if not all(endpoint.startswith("ipc://") for endpoint in fabric):
            server_key = server_key or config.fabric.server_key
            if key is None and server_key is not None and not os.environ.get("BESTER_KEY"):
                key = str(config.key_file)
    from bester.handlers.runner import run

    return run(
        app,
        fabric=fabric,
        key=key,
        server_key=server_key,
        types=None if types is None else types.split(","),
        name=name,
        workers=workers,
        reload=reload,
        log_format=log_format,
        log_level=log_level,
    )
