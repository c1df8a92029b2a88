"""`bester up`, `broker` and `bridge`: the programs that serve."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bester.broker.streams import forgive
from bester.broker.systemd import service_manager
from bester.cli.options import config_option, key_option, load, log_level_option, log_option, server_key_option

if TYPE_CHECKING:
    from bester.broker.config import Config

DEFAULT_FILE = "bester.toml"
DEFAULT_ADDRESS = "127.0.0.1:2223"
"""Default address of the other commands."""
PAGE_ADDRESS = "127.0.0.1:2227"
"""Address of the operator's page under `--page`, where the configuration has none."""


@click.command()
@config_option
@click.option(
    "--besterd",
    type=click.Path(path_type=Path, readable=False),
    metavar="SERVER.CONF",
    help="Read the reference daemon's file instead.",
)
@click.option("--page", is_flag=True, help="Serve the operator's page, print its address and open it.")
@log_option
@log_level_option
def up(config_path: Path | None, besterd: Path | None, page: bool, log_format: str, log_level: str) -> int:
    """Serve: broker, bridge and the declared handlers together."""
    _begin(log_format, log_level)
    if besterd is not None:
        if config_path is not None:
            raise click.UsageError("-c and --besterd name two configurations; give one of them")
        from bester.broker.besterd import load as load_besterd

        read_file: Callable[[], Config] = partial(load_besterd, besterd)
    else:
        read_file = partial(load, config_path)

    def read() -> Config:
        return _with_page(read_file()) if page else read_file()

    config = read()
    _print_notices(config)
    from bester.bridge.embedded import run_up

    def ready(addresses: Sequence[str]) -> None:
        _greet(config, addresses)
        service_manager().ready(banner(config, addresses)[0])
        _print_note("stock-handlers-off", stock_print_note(config) if besterd is None else None)

    def show_page(address: str) -> None:
        if page:
            _show_page(f"{config.operator.scheme}://{address}/", config.operator.token)

    return run_up(config, on_ready=ready, read=read, on_page=show_page)


def _with_page(config: Config) -> Config:
    """Return the configuration with an operator's page, at the usual address where the file has none."""
    from bester.broker.wire.address import parse_host_port

    if config.operator.http is not None:
        return config
    return replace(config, operator=replace(config.operator, http=parse_host_port(PAGE_ADDRESS)))


def _show_page(url: str, token: Path | None) -> None:
    """Print the page's address and open it. The token is not in it: others can read the arguments of a browser."""
    from bester.broker import logs
    from bester.cli.page import open_in_browser

    if not logs.is_json():  # the log has the address already
        how = "" if token is None else f"?token=…, with the secret in {token}, the first time"
        logs.say([f"  the page:           {url}{how}"])
    open_in_browser(url)


@click.command()
@config_option
@log_option
@log_level_option
def broker(config_path: Path | None, log_format: str, log_level: str) -> int:
    """Serve the fabric alone; bridges and handlers connect to it."""
    _begin(log_format, log_level)

    def read() -> Config:
        return _without_stock(load(config_path))

    config = read()
    _print_notices(config)
    from bester.broker.service import run_broker

    listen = ", ".join(config.fabric.listen)
    return run_broker(
        config,
        on_ready=lambda: service_manager().ready(f"broker {config.server.name} on {listen}"),
        read=read,
    )


def _without_stock(config: Config) -> Config:
    """Return the configuration of a program that runs no handlers: where there is no file, `bester up` alone runs the
    stock handlers, and nobody else declares them."""
    return config if config.path is not None else replace(config, handlers=())


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
@click.option(
    "--workers",
    metavar="N",
    type=int,
    default=1,
    show_default=True,
    help="Run so many processes, at the same TCP ports.",
)
@click.option("--child", metavar="I", type=int, hidden=True)
@click.option("--ports", metavar="PORTS", hidden=True)
@log_option
@log_level_option
def bridge(
    config_path: Path | None, fabric: Sequence[str], key: str | None, server_key: str | None, workers: int,
    child: int | None, ports: str | None, log_format: str, log_level: str,
) -> int:  # fmt: skip
    """Serve clients and other servers; the broker runs elsewhere."""
    _begin(log_format, log_level)

    def read_file() -> Config:
        return _elsewhere(_without_stock(load(config_path)), fabric, key, server_key)

    def read() -> Config:
        if child is None:
            return read_file()
        from bester.bridge.workers import for_worker

        return for_worker(read_file(), child, [int(port) for port in (ports or "").split(",") if port.isdigit()])

    config = read()
    if child is not None:
        from bester.bridge.lifeline import Lifeline
        from bester.bridge.standalone import run_bridge

        return run_bridge(config, read=read, lifeline=Lifeline())
    _print_notices(config)

    def ready(addresses: Sequence[str]) -> None:
        _greet(config, addresses)
        service_manager().ready(banner(config, addresses)[0])

    if workers != 1:
        if config.path is not None and config.path.is_fifo():
            from bester.broker.wire.codes import ConfigError

            raise ConfigError(f"{config.path}: is a pipe, and each of the --workers reads it again; name a file")
        from bester.bridge.workers import run_workers

        options = {"--config": config_path, "--key": key, "--server-key": server_key, "--log": log_format}
        command = [sys.executable, "-m", "bester.cli", "bridge", "--log-level", log_level]
        command += [word for name, value in options.items() if value is not None for word in (name, str(value))]
        command += [word for endpoint in fabric for word in ("--fabric", endpoint)]
        return run_workers(config, workers, command, on_ready=ready)
    from bester.bridge.standalone import run_bridge

    return run_bridge(config, on_ready=ready, read=read)


def _elsewhere(config: Config, fabric: Sequence[str], key: str | None, server_key: str | None) -> Config:
    """Return the configuration with the brokers and the keys that options or the environment name."""
    from bester.broker.keys import refuse_unused
    from bester.broker.wire.address import endpoints_to
    from bester.broker.wire.codes import ConfigError

    for option, value in (("--key", key), ("--server-key", server_key)):
        if value == "":
            raise ConfigError(f"{option} is empty; leave it out, or give it a value")
    if "" in fabric:
        raise ConfigError("--fabric is empty; leave it out, or give it a value")
    named = fabric or [each for each in (os.environ.get("BESTER_FABRIC"),) if each]
    try:
        connect = tuple(endpoints_to(named)) or config.fabric.connect
    except ValueError as error:
        raise ConfigError(f"--fabric (or BESTER_FABRIC): {error}") from None
    known = os.environ.get("BESTER_SERVER_KEY") or config.fabric.server_key
    refuse_unused(connect, key, server_key, known=bool(known))
    key, server_key = key or os.environ.get("BESTER_KEY"), server_key or known
    parts = replace(
        config.fabric,
        connect=connect,
        key=Path(key) if key else config.fabric.key,
        server_key=server_key,
    )
    return replace(config, fabric=parts)


def banner(config: Config, addresses: Sequence[str]) -> list[str]:
    """Return three lines: addresses, the command that adds a user, the command that sends a message."""
    from bester.cli.operate import is_elsewhere

    program = _program()
    file = str(config.path) if config.path is not None and config.path.suffix == ".toml" else DEFAULT_FILE
    option = f" -c {shlex.quote(file)}" if file != DEFAULT_FILE else ""
    who = "anybody may log in, with any password" if config.auth == "open" else f"{program} user add{option} alice"
    if config.store.database is None and is_elsewhere(config):  # no account made here is one of that server
        who = f"{program} user add alice, on the broker's host"
    decider = next((handler.name for handler in config.handlers if handler.auth), None)
    if decider is not None:
        who = f"handler {decider} decides who may log in"
    return [
        f"{config.server.name} serves {', '.join(addresses) or 'no native listener'}",
        f"  to add a user:      {who}",
        f"  to send a message:  {_sending(config, addresses, program)}",
    ]


def _sending(config: Config, addresses: Sequence[str], program: str) -> str:
    """Return the command that sends a message to one of a server's addresses, or what can be done without one. The
    stock handlers echo and chat take its data; what any other handler takes is not known here."""
    from bester.broker.config import STOCK_HANDLERS

    first = next((each for each in addresses if not each.startswith(("ws://", "wss://"))), None)
    if first is None:
        others = "any WebSocket client can, as examples/web/chat.html; " if addresses else ""
        return f"{others}`{program} send` needs [native] tcp4, tcp6, unix or tls"
    address = f"unix:{first}" if first.startswith("/") else first
    if first.startswith("tls://"):  # a certificate is for a name, seldom for the address of a listener
        address = f"tls://{config.server.name}:{first.rpartition(':')[2]}"
    to = f" --to {shlex.quote(address)}" if address != DEFAULT_ADDRESS else ""
    stock = {handler.app for handler in STOCK_HANDLERS}
    serving = sorted((each for each in config.handlers if not each.auth), key=lambda each: each.app not in stock)
    command = f"{program} send{to} --user alice {shlex.quote(serving[0].types[0]) if serving else 'TYPE'}"
    if serving and serving[0].app in stock:
        return f"""{command} '{{"to": "alice", "text": "hello"}}'"""
    return f"{command} DATA, where DATA is JSON that the handler takes"


def stock_print_note(config: Config) -> str | None:
    """Return a line that names the stock handlers switched off by a file, and the remedy; None where all run."""
    from bester.broker.config import STOCK_HANDLERS

    declared = {type_ for handler in config.handlers for type_ in handler.types}
    missing = [handler for handler in STOCK_HANDLERS if declared.isdisjoint(handler.types)]
    if config.path is None or not missing:
        return None
    declares = "declares its own handlers" if declared else "declares no handlers"
    several = len(missing) > 1
    names = " and ".join(handler.name for handler in missing)
    subject = f"handlers {names} do" if several else f"handler {names} does"
    keep = " and ".join(f'[handlers.{handler.name}] with app = "{handler.app}"' for handler in missing)
    return f"{config.path} {declares}, so the stock {subject} not run; to keep {'them' if several else 'it'} add {keep}"


def _program() -> str:
    """Return the call of this program: its name where the shell finds it, else its path."""
    try:
        found, here, now = shutil.which("bester"), Path(sys.argv[0]).absolute(), Path.cwd()
        if here.name != "bester" or (found and Path(found).absolute() == here):
            return "bester"
    except OSError:  # the working directory has been removed
        return "bester"
    return shlex.quote(str(here.relative_to(now) if here.is_relative_to(now) else here))


def _begin(log_format: str, log_level: str) -> None:
    """Set up signals, streams and a log that never blocks a program that serves."""
    from bester.broker import logs
    from bester.broker.terminals import outlive_terminals

    outlive_terminals()
    forgive()
    logs.configure(log_format, log_level)


def _print_notices(config: Config) -> None:
    for notice in config.notices:
        _print_note("notice", notice)


def _print_note(event: str, text: str | None) -> None:
    """Print or log a remark about the configuration, if there is one."""
    from bester.broker import logs

    if text is not None and logs.is_json():
        logging.getLogger("bester").warning(text, extra=logs.facts(event))
    elif text is not None:
        logs.say([text])


def _greet(config: Config, addresses: Sequence[str]) -> None:
    """Print or log that the server serves; for people with the next steps."""
    from bester.broker import logs

    lines = banner(config, addresses)
    if logs.is_json():
        fields = logs.facts("serves", server=config.server.name, addresses=addresses)
        logging.getLogger("bester").info(lines[0], extra=fields)
    else:
        logs.say(lines)
