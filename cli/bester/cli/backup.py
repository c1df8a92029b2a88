"""`bester backup`: copies a server's accounts and store, running or not."""

from __future__ import annotations

from pathlib import Path

import click

from bester.broker.wire.codes import ConfigError
from bester.cli.options import config_option, load
from bester.cli.output import done, err


@click.command()
@config_option
@click.argument("directory", type=click.Path(path_type=Path))
def backup(config_path: Path | None, directory: Path) -> None:
    """Copy accounts and store into DIRECTORY, which must be empty or missing.

    A running server goes on serving, and each copy is consistent, as of one moment. To restore, stop the server and
    make DIRECTORY its data directory.
    """
    config = load(config_path)
    from bester.broker.store.backup import backup as copy

    database = config.store.database
    if database is not None:
        dump = f"pg_dump --schema={database.schema} --dbname={database.where!r} --format=custom --file=FILE"
        raise ConfigError(f"accounts and messages are in PostgreSQL, which copies them itself: {dump}")
    if config.store.path is None:
        err("[store] url is memory: and a store in memory cannot be copied")
    for path in copy(config.server.data_dir, directory, store=config.store.path):
        done(f"{path}  {path.stat().st_size:,} bytes")
