"""The two stories as values, and the files their servers run from.

The configurations are those that people read and run by hand; the demo changes only ports, and, for native links, the
addresses of servers. Nothing is started here.
"""

from __future__ import annotations

import json
import random
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bester.broker.config import Config
from bester.broker.config_file import load
from bester.broker.wire.codes import BesterError

FABRIC, BY_NAME, BY_ADDRESS = LINKS = ("fabric", "native-name", "native-address")
"""Links between servers: over ZeroMQ; by the native protocol, named in the configuration; the same, by host:port."""
PORTS = range(20_000, 32_000)
"""Ports below those of outgoing connections, so that none is taken between its choice and its use."""
PORT_TRIES = 200

Addresses = Mapping[str, str]
"""Name or address of each server, as a target."""


@dataclass(frozen=True, slots=True)
class Sending:
    """A message of a story; its data may depend on the servers' addresses."""

    sender: str
    receiver: str
    type: str
    data: Callable[[Addresses], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Story:
    """`package` holds a file for each server, NAME.toml in small letters; `people`: name of a person -> server."""

    title: str
    package: str
    servers: tuple[str, ...]
    people: Mapping[str, str]
    sendings: tuple[Sending, ...]


STORIES: Mapping[str, Story] = {
    "deployment": Story(
        title="The deployment: U1 writes to U2, two servers away",
        package="bester.handlers.stories.deployment",
        servers=("S1", "S2", "S3"),
        people={"U1": "S1", "U2": "S3"},
        sendings=(Sending("U1", "U2", "M1", lambda _: {"text": "Hello from the other end!"}),),
    ),
    "letters": Story(
        title="The letters: T and G write to each other, each in a language of their own",
        package="bester.handlers.stories.letters",
        servers=("magic-machine", "magical-boks"),
        people={"T": "magic-machine", "G": "magical-boks"},
        sendings=(
            Sending(
                "T",
                "G",
                "portuguese",
                lambda called: {
                    "to": f"G@{called['magical-boks']}",
                    "text": "Olá, minha amiga! Tenho saudades tuas. Quando podemos tomar um cafezinho? Um abraço, T",
                },
            ),
            Sending(
                "G",
                "T",
                "afrikaans",
                lambda called: {
                    "to": f"T@{called['magic-machine']}",
                    "read_in": "english",
                    "text": "Hallo, my vriend! Ek verlang ook na jou. Kom ons drink koffie op Saterdag. Soentjies, G",
                },
            ),
        ),
    ),
}


def write_files(
    story: Story, links: str, directory: Path, *, pages: bool = False
) -> tuple[tuple[Config, ...], Addresses]:
    """Write a configuration for each server into a directory, on free ports; return them as read, and the addresses.
    With `pages` each server has its operator's page, and the servers tell one another their steps where links can."""
    ports = free_ports(len(story.servers) * (1 + pages))
    page_ports = ports[len(story.servers) :]
    ports = ports[: len(story.servers)]
    natives = {name: f"127.0.0.1:{port}" for name, port in zip(story.servers, ports, strict=True)}
    configs = []
    for number, name in enumerate(story.servers):
        file = f"{name.lower()}.toml"
        tables = tomllib.loads((resources.files(story.package) / file).read_text(encoding="utf-8"))
        tables["native"] = {"tcp4": natives[name]}
        if pages:
            tables["operator"] = {"http": f"127.0.0.1:{page_ports[number]}"}
        if links != FABRIC:
            for peer, table in tables["servers"].items():
                del table["fabric"]
                table["native"] = natives[peer]
        elif pages:
            for table in tables["servers"].values():
                table["trace"] = True
        path = directory / file
        path.write_text(as_toml(tables), encoding="utf-8")
        configs.append(load(path))
    return tuple(configs), natives if links == BY_ADDRESS else {name: name for name in story.servers}


def as_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return TOML of tables of strings, numbers and lists, and tables of such tables; JSON's text of these is TOML."""
    lines: list[str] = []
    for section, table in tables.items():
        values = {key: value for key, value in table.items() if not isinstance(value, dict)}
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        for name, inner in table.items():
            if name not in values:
                lines.append(as_toml({f"{section}.{name}": inner}))
    return "\n".join(lines) + "\n"


def free_ports(count: int) -> list[int]:
    """Return so many free ports of 127.0.0.1. Raises BesterError where none is found."""
    held: list[socket.socket] = []
    try:
        for port in random.sample(PORTS, PORT_TRIES):
            trial = socket.socket()
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.append(trial)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                held.pop().close()
                continue
            if len(held) == count:
                return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
    raise BesterError("unreachable", f"no free port on 127.0.0.1 in {PORT_TRIES} tries; end programs that listen there")
