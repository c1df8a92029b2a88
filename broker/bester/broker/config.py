"""Configuration of a server as frozen values, with the defaults and the rules of names.

Other modules read files; this one opens no socket, starts no program and makes no directory.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bester.broker.postgres import Database
from bester.broker.store_requests import Bounds
from bester.broker.wire.address import PATH_BYTES, HostPort, Network, is_loopback
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.type_names import AUTH_TYPE

NAME_LIMIT = 100
"""Characters of a server's or handler's name: names travel in every message id and path."""

STORE_FILE = "store.db"
"""Default name of the store's file in the data directory."""

SERVER_KEY = "server.key"
"""Default name of the key file in the data directory."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`broker` is this broker's name among those of the server that share a database."""

    name: str
    data_dir: Path
    broker: str = "bester"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Certificate and key of this server, and its TLS listeners.

    `listen` is empty where the certificate is shown to other servers alone. `client_ca` holds the authorities whose
    certificates prove which server a peer is; None: nobody is asked for a certificate.
    """

    cert: Path
    key: Path
    listen: tuple[HostPort, ...] = ()
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """Listeners for clients and servers, and their limits."""

    tcp4: HostPort | None = None
    tcp6: HostPort | None = None
    unix: Path | None = None
    insecure: bool = False
    max_frame: int = 1024 * 1024
    max_connections: int = 20_000
    max_connections_per_user: int = 1_000
    max_connections_per_address: int = 1_000
    tls: TlsConfig | None = None
    messages_per_s: float = 0.0
    websocket: HostPort | None = None
    websocket_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PartyConfig:
    """Party that comes in with a key: a handler, a bridge or an operator elsewhere.

    `types` are those that a handler may serve, `commands` those that the handler may use, None: every command.
    """

    name: str
    key: str
    role: str
    types: frozenset[str] = frozenset()
    commands: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class FabricConfig:
    """ZeroMQ endpoints and keys; `connect` is never empty.

    `key` is the file of this program's own secret key, None for `server.key` of the data directory. `server_key` is the
    public key of the broker at `connect`. With `curve`, listeners on loopback are encrypted as those beyond it are.
    """

    listen: tuple[str, ...]
    connect: tuple[str, ...]
    key: Path | None = None
    server_key: str | None = None
    curve: bool = False
    parties: Mapping[str, PartyConfig] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Store of queued messages: in the file `path`, or with the accounts in a `database`; neither: in memory, lost with
    the process.

    `synchronous` is "full" (each commit is on the disk) or "normal" (each commit is with the system).
    """

    path: Path | None = None
    synchronous: str = "full"
    bounds: Bounds = field(default_factory=Bounds)
    database: Database | None = None


@dataclass(frozen=True, slots=True)
class HandlerConfig:
    """Declared handler: exactly one of `app`, `command` and `socket`.

    `program` listens on `socket`, if started by the server. `order` is the order of a user's messages: one at a time
    ("user") or in parallel ("none"). A message fails after `timeout_s` with a handler (None: 30 s, or a longer lease of
    the handler), and becomes a dead letter after the death of `attempts` handlers. `commands` are those it may use
    (None: every command). A `shadow` gets copies of messages that other handlers have answered. One with
    `auth` decides logins, and does nothing else.
    """

    name: str
    types: tuple[str, ...]
    workers: int = 1
    app: str | None = None
    command: tuple[str, ...] | None = None
    socket: Path | None = None
    program: tuple[str, ...] | None = None
    order: str = "user"
    timeout_s: float | None = None
    attempts: int = 3
    commands: frozenset[str] | None = None
    shadow: bool = False
    auth: bool = False

    @property
    def process_names(self) -> tuple[str, ...]:
        """Names of the handler's processes, one for each worker."""
        return (self.name,) if self.workers == 1 else tuple(f"{self.name}.{n}" for n in range(self.workers))


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Another server, by name: exactly one of `fabric` and `native`. `accept_types` are the types that it may send
    here, `send_types` those that it may be sent; None: every public type. `key` is the server's public key, without
    which its fabric is not encrypted. `trace`: it is told the steps of the messages that it sent here.

    Of a native server: `reports` is False if the server sends no reports, `ordered` is True if the messages of one type
    are sent one after the other; `tls` is True if the server speaks TLS, and `ca` holds the authorities trusted for its
    certificate (None: those of the system).
    """

    name: str
    fabric: str | None = None
    native: HostPort | None = None
    accept_types: frozenset[str] | None = None
    reports: bool = True
    ordered: bool = False
    key: str | None = None
    tls: bool = False
    ca: Path | None = None
    send_types: frozenset[str] | None = None
    trace: bool = False


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """The operator's HTTP side: its address, None for none, and the files of what lets in.

    `cert` and `key` are both given where the side speaks TLS; `client_ca` holds authorities of operators' certificates.
    """

    http: HostPort | None = None
    token: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @property
    def scheme(self) -> str:
        """Scheme of the addresses of the page."""
        return "http" if self.cert is None else "https"


@dataclass(frozen=True, slots=True)
class Config:
    """Whole configuration. Relative paths start from `directory`; `notices` are lines to show at the start.

    `type_users` are the users who may send a type, by type. `reachable` are networks of this machine and its link that
    handlers may send to without a listed server there.
    """

    directory: Path
    server: ServerConfig
    native: NativeConfig
    fabric: FabricConfig
    path: Path | None = None
    store: StoreConfig = field(default_factory=StoreConfig)
    auth: str = "accounts"
    handlers: tuple[HandlerConfig, ...] = ()
    servers: Mapping[str, PeerConfig] = field(default_factory=lambda: MappingProxyType({}))
    accept: str = "listed"
    type_users: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    reachable: tuple[Network, ...] = ()
    informer: Path | None = None
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    admin_info: Any = None
    notices: tuple[str, ...] = ()

    @property
    def key_file(self) -> Path:
        """File of this program's own key pair."""
        return self.fabric.key or self.server.data_dir / SERVER_KEY

    @property
    def native_hosts(self) -> dict[str, str]:
        """Hosts of the servers that speak the native protocol, by the servers' names."""
        return {name: peer.native.host for name, peer in self.servers.items() if peer.native is not None}

    @property
    def login_deciders(self) -> tuple[str, ...]:
        """Sections of the handlers that decide logins; where there are any, the passwords of accounts count for
        nothing."""
        return login_deciders(self.fabric, self.handlers)

    @property
    def certified_servers(self) -> frozenset[str]:
        """Names of the servers that prove themselves by a certificate, so that their address proves nothing."""
        if self.native.tls is None or self.native.tls.client_ca is None:
            return frozenset()
        return frozenset(name for name, peer in self.servers.items() if peer.tls)


def login_deciders(fabric: FabricConfig, handlers: tuple[HandlerConfig, ...]) -> tuple[str, ...]:
    """Return the sections of the handlers that decide logins."""
    declared = [f"handlers.{handler.name}" for handler in handlers if handler.auth]
    keyed = [f"fabric.parties.{party.name}" for party in fabric.parties.values() if AUTH_TYPE in party.types]
    return (*declared, *keyed)


STOCK_HANDLERS = tuple(
    HandlerConfig(name, (name,), app=f"bester.handlers.stock.{name}:app") for name in ("echo", "chat")
)
"""Handlers that run without a configuration file."""


def defaults(directory: Path) -> Config:
    """Return the configuration without a file: one plain listener on loopback and the stock handlers."""
    data_dir = directory / "bester-data"
    listen = (f"ipc://{data_dir}/fabric.sock",)
    elsewhere = "start in a directory with a shorter path, or set [server] data_dir in bester.toml"
    fault = socket_path_fault(data_dir / "fabric.sock", elsewhere)
    if fault:
        raise ConfigError(fault)
    return Config(
        directory=directory,
        server=ServerConfig(host_name(), data_dir, host_name()),
        native=NativeConfig(tcp4=HostPort("127.0.0.1", 2223)),
        fabric=FabricConfig(listen, listen),
        store=StoreConfig(data_dir / STORE_FILE),
        handlers=STOCK_HANDLERS,
    )


def host_name() -> str:
    """Return the host's name as a server name, or `bester` if the host has no usable name."""
    name = platform.node()
    return name if name_fault(name) is None else "bester"


def name_fault(name: str) -> str | None:
    """Return the fault of a name of a server or handler, or None."""
    if len(name) <= NAME_LIMIT and _NAME.fullmatch(name):
        return None
    return f"{name!r}: a name is up to {NAME_LIMIT} letters, digits, '.', '-' and '_', these three not at its ends"


def socket_path_fault(path: Path, shorter: str) -> str | None:
    """Return the fault of a path of a Unix socket, with its remedy (`shorter` for one that is too long), or None."""
    try:
        length = len(str(path).encode())
    except UnicodeEncodeError:
        return f"{path}: not UTF-8, as the path of a socket has to be; name one that is"
    if length <= PATH_BYTES:
        return None
    return f"{path}: {length} bytes, and a Unix socket's path has {PATH_BYTES} at most; {shorter}"


def listener_fault(key: str, address: HostPort, insecure: bool) -> str | None:
    """Return the reason why a native listener (`tcp4` or `tcp6`) may not listen at an address, or None."""
    numeric_v6 = ":" in address.host
    if key == "tcp4" and numeric_v6:
        return f"{address} is IPv6, which belongs under tcp6"
    if key == "tcp6" and not numeric_v6 and re.fullmatch(r"[\d.]+", address.host):
        return f"{address} is IPv4, which belongs under tcp4"
    if not insecure and not is_loopback(address.host):
        return f"{address} is beyond loopback and the listener speaks plain text"
    return None
