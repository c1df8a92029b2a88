"""`bester backup`: copies what a server keeps, whether it runs or not."""

from __future__ import annotations

from pathlib import Path

import click

from bester.cli.options import config_option, load
from bester.cli.output import done, err


@click.command()
@config_option
@click.argument("directory", type=click.Path(path_type=Path))
def backup(config_path: Path | None, directory: Path) -> None:
    """Copy accounts and store into DIRECTORY, which is empty or not there yet.

    A running server goes on meanwhile, and each copy is whole, as of one moment. To go back to them, stop the server
    and make DIRECTORY its data directory.
    """
    config = load(config_path)
    from bester.broker.store.backup import backup as copy

    if config.store.path is None:
        err("[store] url is memory: and what waits there cannot be copied")
    for path in copy(config.server.data_dir, directory, store=config.store.path):
        done(f"{path}  {path.stat().st_size:,} bytes")
