"""`bester keys`: the server's public key and what the other side needs; pairs for handlers and bridges elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bester.cli.options import config_option, load
from bester.cli.output import err, out

if TYPE_CHECKING:
    from bester.broker.config import Config

PLACE = "THIS-HOST"
"""Stands for the address of a server that listens at every address."""


@click.group(invoke_without_command=True)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def keys(context: click.Context, config_path: Path | None, as_json: bool) -> None:
    """Print this server's public key, and the lines that the other side needs.

    The pair is made where there is none yet.
    """
    if context.invoked_subcommand is not None:
        return
    from bester.broker.data_dir import prepare
    from bester.broker.keys import server_pair

    config = load(config_path)
    if config.key_file.parent == config.server.data_dir:
        prepare(config.server.data_dir)
    public = server_pair(config.key_file).public
    endpoint = _endpoint(config)
    if as_json:
        facts = {"server": config.server.name, "key": public, "file": str(config.key_file), "fabric": endpoint}
        out(json.dumps(facts, ensure_ascii=False))
        return
    out(public)
    out("")
    out("# Another server lists this one in its bester.toml:")
    out(f"[servers.{_quoted(config.server.name)}]")
    out(f'fabric = "{endpoint or f"tcp://{PLACE}:2225"}"')
    out(f'key = "{public}"')
    out("accept_types = []    # the types that this server may send there")
    if endpoint is None:
        err('no [fabric] listen is encrypted yet; add "tcp://0.0.0.0:2225" to the list, beside the ipc:// one')


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Make a pair for a handler, bridge or operator: FILE (secret, mode 0600) and FILE.pub."""
    from bester.broker.config import name_fault
    from bester.broker.keys import new_pair, write_public, write_secret
    from bester.broker.wire.codes import ConfigError

    pair = new_pair()
    try:
        write_secret(file, pair.secret)
    except FileExistsError:
        raise ConfigError(f"{file}: is there already, and a key is never replaced; name another file") from None
    try:
        write_public(file.with_name(f"{file.name}.pub"), pair.public)
    except BaseException:
        file.unlink()
        raise
    out(pair.public)
    out("")
    out("# The server lists it in its bester.toml:")
    name = file.stem if name_fault(file.stem) is None else "NAME"
    out(f"[fabric.parties.{_quoted(name)}]")
    out(f'key = "{pair.public}"')
    out('role = "handler"     # or "bridge" or "operator", without types')
    out('types = ["chat"]')


def _endpoint(config: Config) -> str | None:
    """Return where other servers reach this one, None where no listener is encrypted."""
    from bester.broker.wire.address import parse_endpoint

    for text in config.fabric.listen:
        where = parse_endpoint(text)
        if where.tcp is not None and (config.fabric.curve or not where.local):
            host = PLACE if where.tcp.host in ("0.0.0.0", "::") else where.tcp.host  # noqa: S104 (nothing is bound)
            return f"tcp://{where.tcp._replace(host=host)}"
    return None


def _quoted(name: str) -> str:
    """Return a name as a key of TOML."""
    return name if all(char.isascii() and (char.isalnum() or char in "-_") for char in name) and name else f'"{name}"'
