"""Reader of `server.conf`, the configuration of the reference daemon besterd, into a Config.

Beside besterd's own keys the file may have an object `bester`: tables of `bester.toml`, written as JSON, for settings
that besterd does not have. `Config.notices` names every key that is not read. Relative paths start from the file's
directory, where besterd is run.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from bester.broker.config import (
    Config,
    HandlerConfig,
    NativeConfig,
    listener_fault,
    name_fault,
    socket_path_fault,
)
from bester.broker.config_file import read
from bester.broker.config_paths import directory_of
from bester.broker.toml_table import Source, nearest, one_line
from bester.broker.wire.address import HostPort, parse_host_port
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.type_names import type_fault

INFORMER = "bInformer"
"""Name of the informer's socket, as handlers made for besterd expect."""
KEYS = ("network", "handlers", "database", "admin")
OURS = "bester"
"""Object of the file that besterd does not know."""
ELSEWHERE = {
    "handlers": "handlers are declared in handlers.typeMap of this file",
    "informer": f"the informer is {INFORMER} beside this file, where besterd has it",
    "server.data_dir": "the other commands look into bester-data beside this file",
    "store.url": "the other commands look for bester-data/store.db beside this file",
    "fabric": "the other commands look for bester-data/fabric.sock beside this file",
    "native.tcp4": "listeners stand in network of this file",
    "native.tcp6": "listeners stand in network of this file",
    "native.unix": "listeners stand in network of this file",
    "native.insecure": 'write "insecure": true into network of this file',
}
"""Keys that `bester` must not have, with the reason: besterd's own keys cover them, or commands that do not read this
file would go wrong."""
OPEN = (
    "as with besterd, any server may send messages here, and handlers may send to any host:port; to keep to servers "
    'that you name: "bester": {"servers": {"NAME": {"native": "HOST:PORT"}}, "federation": {"accept": "listed"}}'
)
"""Notice at every start until `accept` is set."""


def load(path: Path) -> Config:
    """Read a `server.conf`. Raises ConfigError."""
    return _Reader(path).config()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = directory_of(path)
        self._notices: list[str] = []
        text = Source(path, "--besterd").text
        try:
            self._top = self._map(msgspec.json.decode(text), "the file")
        except (msgspec.DecodeError, RecursionError) as error:
            self._fail("the file", f"is not JSON: {error}; mend it there")

    def config(self) -> Config:
        """Return the configuration. Raises ConfigError with the first mistake."""
        for key in self._top:
            if key not in (*KEYS, OURS):
                self._notices.append(f"{key} is not read; {nearest(key, (*KEYS, OURS))}")
        native = self._native(self._map(self._top.get("network", {}), "network"))
        if "database" in self._top:
            self._notices.append("the database is not read; `bester user add NAME` makes accounts")
        admin = self._map(self._top.get("admin", {}), "admin")
        handlers = self._handlers(self._map(self._top.get("handlers", {}), "handlers"))
        tables = self._map(self._top.get(OURS, {}), OURS)
        ours = read(self._tables(tables))
        chosen = "accept" in tables.get("federation", {})
        if not chosen:
            self._notices.append(OPEN)
        return replace(
            ours,
            path=self.path,
            native=replace(ours.native, tcp4=native.tcp4, tcp6=native.tcp6, unix=native.unix, insecure=native.insecure),
            handlers=handlers,
            accept=ours.accept if chosen else "open",
            informer=self._socket(INFORMER, "informer"),
            admin_info=admin.get("info"),
            notices=(*(f"{self.path}: {one_line(notice)}" for notice in self._notices), *ours.notices),
        )

    def _tables(self, tables: dict[str, Any]) -> _Tables:
        """Return the tables of `bester`. Raises ConfigError for keys that belong elsewhere."""
        source = _Tables(self.path, tables)
        for key_path, where in ELSEWHERE.items():
            section, _, key = key_path.partition(".")
            table = tables.get(section)
            if table is not None and (not key or (isinstance(table, dict) and key in table)):
                source.fail(section, key or None, f"does not belong here; {where}")
        return source

    def _native(self, network: dict[str, Any]) -> NativeConfig:
        kinds = network.get("types", [kind for kind in ("tcp4", "tcp6", "unix") if kind in network])
        if not isinstance(kinds, list) or not kinds:
            self._fail("network.types", 'names no listener; write ["tcp4"] and a tcp4 block')
        insecure = network.get("insecure", False)
        if not isinstance(insecure, bool):
            self._fail("network.insecure", "is true or false")
        tcp: dict[str, HostPort] = {}
        unix = None
        for kind in kinds:
            if kind not in ("tcp4", "tcp6", "unix"):
                self._fail("network.types", f"{kind!r} is not one of tcp4, tcp6, unix")
            key_path = f"network.{kind}"
            block = self._map(network.get(kind), key_path)
            address = self._text(block.get("address"), f"{key_path}.address")
            if kind == "unix":
                unix = self._socket(address, f"{key_path}.address")
            else:
                tcp[kind] = self._address(kind, address, str(block.get("port", "")), insecure)
        return NativeConfig(tcp.get("tcp4"), tcp.get("tcp6"), unix, insecure)

    def _address(self, kind: str, host: str, port: str, insecure: bool) -> HostPort:
        key_path = f"network.{kind}"
        try:
            address = parse_host_port(f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}")
        except ValueError as error:
            self._fail(key_path, str(error))
        fault = listener_fault(kind, address, insecure)
        if fault:
            self._fail(key_path, f'{fault}; use a loopback address, or add "insecure": true to network')
        return address

    def _handlers(self, block: dict[str, Any]) -> tuple[HandlerConfig, ...]:
        by_type = self._map(block.get("typeMap", {}), "handlers.typeMap")
        types = block.get("availableTypes", list(by_type))
        if not isinstance(types, list):
            self._fail("handlers.availableTypes", 'is a list of types, as ["chat"]')
        for unused in by_type.keys() - set(map(str, types)):
            self._notices.append(f"handlers.typeMap.{unused} is not among availableTypes and is left out")
        return tuple(self._handler(type_, by_type, number) for number, type_ in enumerate(types, 1))

    def _handler(self, type_: object, by_type: dict[str, Any], number: int) -> HandlerConfig:
        type_ = self._text(type_, "handlers.availableTypes")
        key_path = f"handlers.typeMap.{type_}"
        fault = type_fault(type_)
        if fault:
            self._fail("handlers.availableTypes", fault)
        if type_ not in by_type:
            self._fail(key_path, "is missing, though availableTypes names the type; add it or take the type out")
        block = self._map(by_type[type_], key_path)
        socket = self._socket(
            self._text(block.get("unixDomainSocketPath"), f"{key_path}.unixDomainSocketPath"),
            f"{key_path}.unixDomainSocketPath",
        )
        binary = block.get("handlerBinary")
        program = self._program(binary, key_path)
        return HandlerConfig(
            name=type_ if name_fault(type_) is None else f"handler-{number}",
            types=(type_,),
            socket=socket,
            program=(program, str(socket)) if program else None,
        )

    def _program(self, binary: object, key_path: str) -> str | None:
        if binary is None or binary == "":
            return None
        path = self.directory / self._text(binary, f"{key_path}.handlerBinary")
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
        self._notices.append(
            f"{key_path}.handlerBinary: {path} is no program here; its socket is expected to be served"
        )
        return None

    def _socket(self, text: str, key_path: str) -> Path:
        path = self.directory / text
        fault = socket_path_fault(path, "choose a shorter one")
        if fault:
            self._fail(key_path, fault)
        return path

    def _map(self, value: object, key_path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(key_path, "is missing or no object; write { … }")
        return value

    def _text(self, value: object, key_path: str) -> str:
        if not isinstance(value, str) or not value or re.search(r"[\x00-\x1f]", value):
            self._fail(key_path, "is missing or not plain text; write it as a string")
        return value

    def _fail(self, key_path: str, problem: str) -> NoReturn:
        raise ConfigError(one_line(f"{self.path}: {key_path}: {problem}"))


class _Tables(Source):
    """Tables of `bester`, in place of those of a TOML file."""

    def __init__(self, path: Path, tables: dict[str, Any]) -> None:
        self.path = path
        self.text = ""
        self._tables = tables

    def tables(self) -> dict[str, Any]:
        """Return the tables."""
        return self._tables

    def fail(self, section: str, key: str | None, problem: str) -> NoReturn:
        """Raise ConfigError for a key, or for the section if `key` is None."""
        key_path = ".".join(part for part in (OURS, section, key) if part)
        problem = re.sub(r"write (\w+) = ", r'write "\1": ', problem)  # remedies in the form of JSON
        problem = re.sub(r"is a table; write \[.*\] and its keys below", "is an object; write { … }", problem)
        raise ConfigError(one_line(f"{self.path}: {key_path}: {problem}"))
