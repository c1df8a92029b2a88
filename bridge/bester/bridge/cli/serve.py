"""`bester up`, `broker` and `bridge`: the programs that serve."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bester.bridge.cli.options import config_option, load, log_level_option, log_option

if TYPE_CHECKING:
    from bester.broker.config import Config

DEFAULT_FILE = "bester.toml"
DEFAULT_ADDRESS = "127.0.0.1:2223"
"""What other commands take without being told."""


@click.command()
@config_option
@click.option(
    "--besterd",
    type=click.Path(path_type=Path, readable=False),
    metavar="SERVER.CONF",
    help="Read the reference daemon's file instead.",
)
@log_option
@log_level_option
def up(config_path: Path | None, besterd: Path | None, log_format: str, log_level: str) -> int:
    """Serve: broker, bridge and the declared handlers together."""
    if besterd is not None:
        if config_path is not None:
            raise click.UsageError("-c and --besterd name two configurations; give one of them")
        from bester.broker.besterd import load as load_besterd

        config = load_besterd(besterd)
    else:
        config = load(config_path)
    _begin(config, log_format, log_level)
    from bester.bridge.embedded import run_up

    return run_up(config, on_ready=lambda addresses: _say(banner(config, addresses)))


@click.command()
@config_option
@log_option
@log_level_option
def broker(config_path: Path | None, log_format: str, log_level: str) -> int:
    """Serve the fabric alone; bridges and handlers connect to it."""
    config = load(config_path)
    _begin(config, log_format, log_level)
    from bester.broker.service import run_broker

    return run_broker(config)


@click.command()
@config_option
@log_option
@log_level_option
def bridge(config_path: Path | None, log_format: str, log_level: str) -> int:
    """Serve clients and other servers; the broker runs elsewhere."""
    config = load(config_path)
    _begin(config, log_format, log_level)
    from bester.bridge.service import run_bridge

    return run_bridge(config, on_ready=lambda addresses: _say(banner(config, addresses)))


def banner(config: Config, addresses: Sequence[str]) -> list[str]:
    """Return three lines: where it serves, how to add a user, how to send a message."""
    program = _program()
    file = str(config.path) if config.path is not None and config.path.suffix == ".toml" else DEFAULT_FILE
    option = f" -c {shlex.quote(file)}" if file != DEFAULT_FILE else ""
    first = next(iter(addresses), DEFAULT_ADDRESS)
    address = f"unix:{first}" if first.startswith("/") else first
    to = f" --to {shlex.quote(address)}" if address != DEFAULT_ADDRESS else ""
    type_ = config.handlers[0].types[0] if config.handlers else "TYPE"
    who = "anybody may log in, with any password" if config.auth == "open" else f"{program} user add{option} alice"
    return [
        f"{config.server.name} serves {', '.join(addresses) or 'no native listener'}",
        f"  to add a user:      {who}",
        f"""  to send a message:  {program} send{to} --user alice {type_} '{{"text": "hello"}}'""",
    ]


def _program() -> str:
    """Return how this program is called from here: by name where the shell finds it, else by its path."""
    found, here = shutil.which("bester"), Path(sys.argv[0]).absolute()
    if here.name != "bester" or (found and Path(found).absolute() == here):
        return "bester"
    return shlex.quote(str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here))


def _begin(config: Config, log_format: str, log_level: str) -> None:
    from bester.bridge import logs

    logs.configure(log_format, log_level)
    _say(config.notices)


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(line, err=True)
