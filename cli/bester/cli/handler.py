"""`bester handler`: runs a Python handler."""

from __future__ import annotations

import os
from pathlib import Path

import click

from bester.cli.options import config_option, load, log_level_option, log_option


@click.command()
@config_option
@click.option(
    "--fabric",
    metavar="URL",
    help="Address of the broker; by default BESTER_FABRIC, else the configuration.",
)
@click.option("--workers", type=int, default=1, show_default=True, metavar="N", help="Processes to run.")
@click.option("--reload", is_flag=True, help="Start anew when a Python file of the app changes.")
@log_option
@log_level_option
@click.argument("app", metavar="MODULE:APP")
def handler(
    config_path: Path | None,
    fabric: str | None,
    workers: int,
    reload: bool,
    log_format: str,
    log_level: str,
    app: str,
) -> int:
    """Run a Python handler: APP is an attribute of MODULE, which may be a file here."""
    if fabric is None and (config_path is not None or not os.environ.get("BESTER_FABRIC")):
        fabric = load(config_path).fabric.connect[0]
    from bester.handlers.runner import run

    return run(
        app,
        fabric=fabric,
        workers=workers,
        reload=reload,
        log_format=log_format,
        log_level=log_level,
    )
