"""Reader of `bester.toml` into a Config; every mistake becomes one line with its remedy.

`KEYS` lists every key, and a test compares the reference in docs/ with the list. No key is accepted and ignored. This
module opens no socket, starts no program and makes no directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from bester.broker.config import (
    SERVER_KEY,
    STORE_FILE,
    Config,
    FabricConfig,
    HandlerConfig,
    NativeConfig,
    OperatorConfig,
    PartyConfig,
    PeerConfig,
    ServerConfig,
    StoreConfig,
    TlsConfig,
    defaults,
    host_name,
    listener_fault,
    login_deciders,
    name_fault,
    socket_path_fault,
)
from bester.broker.postgres import SCHEMES as POSTGRES_SCHEMES
from bester.broker.postgres import Database, schema_fault, url_fault
from bester.broker.store_requests import Bounds
from bester.broker.toml_table import NO_HINTS, Source, Table, nearest
from bester.broker.wire.address import HostPort, is_loopback, is_numeric, parse_endpoint, parse_host_port, parse_network
from bester.broker.wire.keys import must_encrypt, parse_key
from bester.broker.wire.messages import AUTH_TYPE, COMMANDS, MAX_BODY_BYTES, type_fault

FILE = Path("bester.toml")
"""Default file of every command, if present."""
MAX_WORKERS = 256
"""Processes of one handler; more than any machine runs well."""
MAX_CONNECTIONS = 1_000_000
"""Above this a limit is a slip of the keyboard."""
MAX_RATE = 1_000_000.0
"""Messages a second; no server is as fast."""
MIN_TTL_S, MAX_TTL_S = 1, 365 * 24 * 3600
"""Bounds of the time that messages wait: less than a second is no waiting, and after a year no user needs a message."""
MIN_SHARE = 0.001
"""Least share of a mailbox that one sender may have: of the usual 10,000 messages, ten."""
MAX_MESSAGES = 1_000_000_000
"""Messages; above this, and above MAX_STORE_BYTES, a bound is a slip of the keyboard."""
MAX_STORE_BYTES = 2**50
MIN_TIMEOUT_S, MAX_TIMEOUT_S = 0.1, 24 * 3600
"""A busy machine delays any handler by less than the first; a day is longer than any sender waits for a report."""
MAX_ATTEMPTS = 100
"""A message over which so many handlers have died will not spare the next."""


EVERY = "*"
"""Stands for every public type in `accept_types` and `send_types`."""
ANY = "any"
"""Stands for every user in `users`."""
FORGETFUL = '[store] url is memory:, so queued messages are lost with this process; "sqlite:…" names a file for them'
OTHERS_FILES = ("accounts.db", "server.lock", "fabric.sock", SERVER_KEY)
"""Other files of the data directory and of a backup, which a store must not replace."""


class Key(NamedTuple):
    """Key of the file: default and meaning, as the reference shows them."""

    default: str
    meaning: str


KEYS: Mapping[str, Mapping[str, Key]] = {
    "server": {
        "name": Key("the host's name", "the name by which other servers know this one; part of every message id"),
        "data_dir": Key('"bester-data"', "accounts, the store and the fabric's socket; made with mode 0700"),
        "broker": Key("the host's name", "this broker's name in a database, where its messages and its lease are"),
    },
    "native": {
        "tcp4": Key(
            '"127.0.0.1:2223"', "the listener for clients and servers on IPv4; the default if no listener is named"
        ),
        "tcp6": Key("none", 'a listener on IPv6, as "[::1]:2224"'),
        "unix": Key("none", "a listener on a Unix socket at this path"),
        "insecure": Key("false", "allow plain text on addresses beyond loopback"),
        "max_frame": Key("1048576", "bytes of the longest frame accepted from a client that has logged in"),
        "max_connections": Key("20000", "connections at once; a quarter of them, up to 5000, before a login"),
        "max_connections_per_user": Key("1000", "connections of one user at once"),
        "max_connections_per_address": Key("1000", "connections from one address at once, except loopback"),
        "messages_per_s": Key("0", "messages a second of one user, twice as many at once; 0: no limit"),
        "websocket": Key("none", "a listener for browsers, as HOST:PORT; with [native.tls] it speaks TLS (wss)"),
        "websocket_origins": Key("[]", 'the pages that may connect beside those of this host; "*" is every page'),
    },
    "native.tls": {
        "listen": Key("none", 'a listener with TLS, as "0.0.0.0:2224", or a list of them'),
        "cert": Key("none", "the file of this server's certificate, and of the authorities below the root, in PEM"),
        "key": Key("none", "the file of the private key of `cert`, which nobody else may read"),
        "client_ca": Key("none", "the file of the authorities whose certificates prove which server a peer is"),
    },
    "fabric": {
        "listen": Key(
            '["ipc://DATA_DIR/fabric.sock"]',
            "where the broker accepts handlers, bridges and servers; DATA_DIR stands for data_dir",
        ),
        "connect": Key("the first ipc:// of `listen`, else its first", "where bridges and handlers find the broker"),
        "key": Key(
            '"DATA_DIR/server.key"', "the file of this program's own secret key; a server makes one at its first start"
        ),
        "server_key": Key("none", "the public key of the broker at `connect`, for bridges and handlers elsewhere"),
        "curve": Key("false", "true: encrypt tcp:// on loopback too; beyond loopback it always is"),
    },
    "fabric.parties.NAME": {
        "key": Key("none", "the party's public key, as `bester keys` prints it; required"),
        "role": Key("none", '"handler", "bridge" or "operator": what the key may be; required'),
        "types": Key("[]", "the message types that a handler with this key may serve"),
        "commands": Key("every command", "the commands that such a handler may use"),
    },
    "store": {
        "url": Key(
            '"sqlite:DATA_DIR/store.db"',
            'the store of queued messages; "postgresql://USER@HOST/DATABASE" holds the accounts too; "memory:" keeps '
            "none beyond the end of the process",
        ),
        "schema": Key('"bester"', "the schema of a url that begins with postgresql://: one for each server"),
        "synchronous": Key('"full"', '"full" survives power loss; "normal" is faster and may lose the last moments'),
        "ttl_s": Key("259200", "seconds that a message stays queued, unless its sender names another time"),
        "user_messages": Key("10000", "messages queued for one user"),
        "user_bytes": Key("67108864", "bytes queued for one user"),
        "sender_share": Key(
            "0.1", "part of `user_messages` and `user_bytes` that one sender may use; 1 lets one sender use all"
        ),
        "server_messages": Key("100000", "messages queued for one other server"),
        "server_bytes": Key("1073741824", "bytes queued for one other server"),
        "messages": Key("1000000", "messages queued in all"),
        "bytes": Key("8589934592", "bytes queued in all"),
        "server_outcomes": Key(
            "50000",
            "notes kept of messages that are queued at one other server; a new one above the bound replaces the oldest",
        ),
        "outcomes": Key(
            "1000000",
            "outcomes kept for questions of their senders; a new one above the bound replaces the oldest",
        ),
        "dead_letters": Key("10000", "dead letters kept; a new one above the bound replaces the oldest"),
    },
    "accounts": {
        "auth": Key('"accounts"', '"accounts": users that `bester user add` made; "open": any name with any password'),
    },
    "handlers.NAME": {
        "types": Key('["NAME"]', "the message types it handles"),
        "workers": Key("1", "processes started"),
        "app": Key("none", "a Python handler, as module:attribute; one of app, command and socket is given"),
        "command": Key("none", "a program and its arguments, in any language"),
        "socket": Key("none", "the Unix socket of a handler made for besterd"),
        "order": Key(
            '"user"',
            'of a `socket`: "user" sends each user\'s messages one at a time and in order, "none" in parallel',
        ),
        "timeout_s": Key(
            "30", "seconds that a handler may take for one message; without this key a longer lease counts"
        ),
        "attempts": Key(
            "3", "handlers that may die with one message alone in flight before the message is a dead letter"
        ),
        "commands": Key("every command", "the commands that it may use: of sendClients, sendServers and sendHandler"),
        "auth": Key(
            "false", "true: it decides logins, as a handler of `bester.auth`, and the passwords of accounts do not"
        ),
        "shadow": Key(
            "false", "true: it gets copies of what other handlers have answered, and its commands are only compared"
        ),
    },
    "types.NAME": {
        "users": Key('"any"', "the users who may send messages of this type; handlers may pass on to it all the same"),
    },
    "servers.NAME": {
        "fabric": Key("none", "the server's fabric, as tcp:// or ipc://; one of fabric and native is given"),
        "key": Key("none", "the public key of its fabric; required for a tcp:// beyond loopback"),
        "native": Key("none", "the server's native listener, as host:port"),
        "tls": Key("false", "true: the server's native listener speaks TLS; its certificate must be for the host"),
        "ca": Key("the system's", "the file of the authorities trusted for that certificate, or that certificate"),
        "accept_types": Key("[]", 'the message types it may send to this server; "*" is every public type'),
        "send_types": Key('["*"]', 'the message types that handlers may send to it; "*" is every public type'),
        "trace": Key("false", "true: it is told the steps here of the messages that it sent, for `bester trace` there"),
        "reports": Key("true", "false: a native server that sends no reports (besterd)"),
        "order": Key('"none"', '"type": the messages of one type go to a native server one after the other'),
    },
    "federation": {
        "accept": Key(
            '"listed"',
            'servers that may send here: "listed" ones, "open" for all, or "none"; only with "open" may handlers send '
            "to a host:port that is not listed",
        ),
        "reachable": Key(
            "[]",
            "addresses and networks of this machine or its link that handlers may send to as a bare host:port, where "
            '`accept` is "open"',
        ),
    },
    "informer": {
        "unix": Key("none", "the Unix socket for questions of handlers made for besterd"),
    },
    "operator": {
        "http": Key("none", 'the address of the operator\'s page, metrics and API, as "127.0.0.1:2227"'),
        "token": Key("none", "the file of the secret that lets in, mode 0600; needed beyond loopback, and for acts"),
    },
}


_LOG = "the log is set on the command line, with --log and --log-level"
_ADDRESS = 'addresses are written as tcp4 = "HOST:PORT" in [native]'
_TLS = "the keys of TLS stand in [native.tls]"
HINTS: Mapping[str, Mapping[str, str]] = {
    "": {
        "log": _LOG, "logs": _LOG, "logging": _LOG, "tls": _TLS, "ssl": _TLS, "peers": "did you mean servers?",
        "handler": "did you mean handlers?", "users": "`bester user add NAME` makes accounts",
        "user": "`bester user add NAME` makes accounts", "network": "besterd's own file is read with --besterd",
    },
    "server": {"port": _ADDRESS, "host": _ADDRESS, "address": _ADDRESS, "listen": _ADDRESS},
    "native": {"port": _ADDRESS, "host": _ADDRESS, "address": _ADDRESS, "listen": _ADDRESS, "ssl": _TLS,
               "cert": _TLS, "certificate": _TLS, "key": _TLS, "client_ca": _TLS},
    "native.tls": {"certificate": "did you mean cert?", "ca": "did you mean client_ca?"},
    "fabric": {"keys": "did you mean key?", "secret": "did you mean key?", "party": "did you mean parties?"},
    "fabric.parties.NAME": {"type": "did you mean types?", "public_key": "did you mean key?"},
    "handlers.NAME": {"retries": "did you mean attempts?"},
    "types.NAME": {"user": "did you mean users?", "allow": "did you mean users?"},
    "servers.NAME": {"address": "did you mean fabric or native?", "host": "did you mean fabric or native?"},
}  # fmt: skip
"""Remedies for keys that users expect and Bester does not have."""


def load(path: Path | None = None) -> Config:
    """Read a file, by default `bester.toml` if present, else return the defaults. Raises ConfigError."""
    if path is None:
        if not FILE.exists():
            return defaults(Path.cwd())
        path = FILE
    return read(Source(path))


def read(source: Source) -> Config:
    """Read the tables of a source. Raises ConfigError."""
    return _Reader(source).config()


class _Reader:
    """Reads one file, section by section."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.directory = source.path.absolute().parent
        sections = {name.partition(".")[0] for name in KEYS}  # parties are a table inside of [fabric]
        self._top = Table(source, "", source.tables(), sections, HINTS[""])

    def config(self) -> Config:
        """Return the configuration. Raises ConfigError with the first mistake."""
        server = self._server()
        servers = {name: self._peer(name, table) for name, table in self._named("servers")}
        if server.name in servers:
            self._source.fail(
                f"servers.{server.name}", None, "is this server itself; remove it, or rename [server] name"
            )
        fabric = self._fabric(server.data_dir)
        self._one_owner_a_key(fabric, servers)
        informer = self._section("informer")
        store = self._store(server.data_dir)
        handlers = tuple(self._handler(name, table) for name, table in self._named("handlers"))
        federation = self._section("federation")
        users = {name: self._users_of(name, table) for name, table in self._named("types", name_fault=type_fault)}
        self._one_budget_a_type(handlers)
        auth = self._section("accounts").choice("auth", "accounts", ("accounts", "open"))
        if auth == "open":
            self._nobody_decides(fabric, handlers)
        return Config(
            path=self._source.path,
            directory=self.directory,
            server=server,
            native=self._native(),
            fabric=fabric,
            store=store,
            auth=auth,
            handlers=handlers,
            servers=MappingProxyType(servers),
            accept=federation.choice("accept", "listed", ("listed", "open", "none")),
            type_users=MappingProxyType({name: each for name, each in users.items() if each is not None}),
            reachable=tuple(
                federation.checked("reachable", parse_network, text) for text in federation.texts("reachable") or ()
            ),
            informer=self._socket(informer, "unix"),
            operator=self._operator(),
            notices=() if store.path or store.database else (f"{self._source.path}: {FORGETFUL}",),
        )

    def _section(self, name: str) -> Table:
        values = self._top.raw(name) if name in self._top else {}
        known = [*KEYS[name], "parties"] if name == "fabric" else KEYS[name]
        return Table(self._source, name, values, known, HINTS.get(name, NO_HINTS))

    def _named(
        self, name: str, within: Table | None = None, name_fault: Callable[[str], str | None] = name_fault
    ) -> list[tuple[str, Table]]:
        """Return the tables of a section by their names; `name` is dotted for a section within another."""
        outer, last = within or self._top, name.rpartition(".")[2]
        values = outer.raw(last) if last in outer else {}
        outer = Table(self._source, name, values, values if isinstance(values, dict) else ())
        tables: list[tuple[str, Table]] = []
        known = KEYS[f"{name}.NAME"]
        for each in outer.names():
            fault = name_fault(each)
            if fault:
                self._source.fail(f"{name}.{each}", None, fault)
            values = outer.raw(each)
            if each in known and not isinstance(values, dict):
                outer.fail(each, f"belongs below a name; write [{name}.NAME] above it")
            dotted = self._dotted(each, values, known)
            if dotted != each:
                problem = f'a name with dots stands in quotes; write [{name}."{dotted}"]'
                self._source.fail(f"{name}.{dotted}", None, problem)
            table = Table(self._source, f"{name}.{each}", values, known, HINTS[f"{name}.NAME"])
            tables.append((each, table))
        return tables

    def _dotted(self, name: str, values: object, known: Mapping[str, Key]) -> str:
        """Return the intended name of a table: TOML reads [servers.b.example] as a table in a table."""
        while isinstance(values, dict):
            inner = [key for key, value in values.items() if isinstance(value, dict) and key not in known]
            if not inner or any(key in known for key in values):
                break
            name, values = f"{name}.{inner[0]}", values[inner[0]]
        return name

    def _server(self) -> ServerConfig:
        table = self._section("server")
        name = table.text("name")
        fault = name_fault(name) if name is not None else None
        if fault:
            table.fail("name", fault)
        broker = table.text("broker")
        fault = name_fault(broker) if broker is not None else None
        if fault:
            table.fail("broker", fault)
        data_dir = self._path(table, "data_dir") or self.directory / "bester-data"
        return ServerConfig(name or host_name(), data_dir, broker or host_name())

    def _native(self) -> NativeConfig:
        values = self._top.raw("native") if "native" in self._top else {}
        table = Table(self._source, "native", values, (*KEYS["native"], "tls"), HINTS["native"])
        insecure = table.flag("insecure")
        tcp4, tcp6 = (self._listener(table, key, insecure) for key in ("tcp4", "tcp6"))
        unix = self._socket(table, "unix")
        tls = self._tls(table.raw("tls")) if "tls" in table else None
        text = table.text("websocket")
        websocket = None if text is None else table.checked("websocket", parse_host_port, text)
        if websocket is not None and not (insecure or tls is not None or is_loopback(websocket.host)):
            table.fail(
                "websocket",
                "would take passwords in plain text from other machines; add [native.tls], or use 127.0.0.1",
            )
        origins = table.texts("websocket_origins") or ()
        if tcp4 is None and tcp6 is None and unix is None and websocket is None and (tls is None or not tls.listen):
            tcp4 = HostPort("127.0.0.1", 2223)
        limits = {
            key: table.number(key, int(KEYS["native"][key].default), low, high)
            for key, low, high in (
                ("max_frame", 1024, MAX_BODY_BYTES),
                ("max_connections", 1, MAX_CONNECTIONS),
                ("max_connections_per_user", 1, MAX_CONNECTIONS),
                ("max_connections_per_address", 1, MAX_CONNECTIONS),
            )
        }
        rate = table.decimal("messages_per_s", 0.0, 0.0, MAX_RATE)
        return NativeConfig(
            tcp4, tcp6, unix, insecure, **limits, tls=tls, messages_per_s=rate,
            websocket=websocket, websocket_origins=origins,
        )  # fmt: skip

    def _tls(self, values: object) -> TlsConfig:
        table = Table(self._source, "native.tls", values, KEYS["native.tls"], HINTS["native.tls"])
        listen = table.raw("listen")
        texts = (table.text("listen"),) if isinstance(listen, str) else table.texts("listen") or ()
        addresses = tuple(table.checked("listen", parse_host_port, text) for text in texts)
        cert, key = self._path(table, "cert"), self._path(table, "key")
        if cert is None or key is None:
            missing = "cert" if cert is None else "key"
            table.fail(None, f'needs {missing} = "FILE": cert is the certificate of this server, key its private key')
        client_ca = self._path(table, "client_ca")
        if client_ca is not None and not addresses:
            table.fail("client_ca", "is for a listener; add listen, or leave this key out")
        return TlsConfig(cert, key, addresses, client_ca)

    def _listener(self, table: Table, key: str, insecure: bool) -> HostPort | None:
        text = table.text(key)
        if text is None:
            return None
        address = table.checked(key, parse_host_port, text)
        fault = listener_fault(key, address, insecure)
        if fault:
            table.fail(
                key,
                f"{fault}; use {'127.0.0.1' if key == 'tcp4' else '[::1]'}, or set insecure = true",
            )
        return address

    def _operator(self) -> OperatorConfig:
        table = self._section("operator")
        text, token = table.text("http"), self._path(table, "token")
        http = None if text is None else table.checked("http", parse_host_port, text)
        if http is None and token is not None:
            table.fail("token", 'is for the page; add http = "127.0.0.1:2227"')
        if http is not None and not is_loopback(http.host) and token is None:
            table.fail("http", "is beyond this machine, where everybody could look; add token = FILE, or use 127.0.0.1")
        return OperatorConfig(http, token)

    def _fabric(self, data_dir: Path) -> FabricConfig:
        table = self._section("fabric")
        listen = table.texts("listen") if "listen" in table else ("ipc://DATA_DIR/fabric.sock",)
        bound = self._endpoints(table, "listen", listen or (), data_dir)
        if not bound:
            table.fail("listen", "is empty; leave the key out for the default")
        connect = table.texts("connect")
        if connect == ():
            table.fail("connect", "is empty; leave the key out to connect where the broker listens")
        server_key = table.text("server_key")
        parties = {name: self._party(name, each) for name, each in self._named("fabric.parties", table)}
        return FabricConfig(
            listen=bound,
            connect=_nearest(bound) if connect is None else self._endpoints(table, "connect", connect, data_dir),
            key=self._file(table, "key", data_dir),
            server_key=None if server_key is None else table.checked("server_key", parse_key, server_key),
            curve=table.flag("curve"),
            parties=MappingProxyType(parties),
        )

    def _party(self, name: str, table: Table) -> PartyConfig:
        for key in ("key", "role"):
            if key not in table:
                table.fail(None, f'has no {key}; a party has key = "…" and role = "handler"')
        role = table.choice("role", "", ("handler", "bridge", "operator"))
        types = self._types(table, "types", table.texts("types") or (), granted=True) if role == "handler" else ()
        for key in ("types", "commands"):
            if role != "handler" and key in table:
                table.fail(key, f"is for handlers; a {role} serves no types, so leave the key out")
        return PartyConfig(
            name=name,
            key=table.checked("key", parse_key, table.text("key")),
            role=role,
            types=frozenset(types),
            commands=self._commands(table),
        )

    def _commands(self, table: Table) -> frozenset[str] | None:
        commands = table.texts("commands")
        for each in commands or ():
            if each not in COMMANDS:
                table.fail("commands", f"{each!r} is no command; {nearest(each, COMMANDS)}")
        return None if commands is None else frozenset(commands)

    def _one_owner_a_key(self, fabric: FabricConfig, servers: Mapping[str, PeerConfig]) -> None:
        """Require that no two parties have one key, as the key tells them apart."""
        owners: dict[str, str] = {}
        keyed = [(f"servers.{peer.name}", peer.key) for peer in servers.values() if peer.key is not None]
        keyed += [(f"fabric.parties.{party.name}", party.key) for party in fabric.parties.values()]
        for section, key in keyed:
            other = owners.setdefault(key, section)
            if other != section:
                self._source.fail(section, "key", f"is the key of [{other}] too; each party has a key of its own")

    def _endpoints(self, table: Table, key: str, texts: tuple[str, ...], data_dir: Path) -> tuple[str, ...]:
        found = tuple(self._endpoint(table, key, text, data_dir) for text in texts)
        for text in found:
            if found.count(text) > 1:
                table.fail(key, f"{text!r} is named twice; remove one")
        return found

    def _endpoint(self, table: Table, key: str, text: str, data_dir: Path) -> str:
        endpoint = table.checked(key, parse_endpoint, text)
        if endpoint.tcp is None:
            first, _, rest = endpoint.path.partition("/")
            path = data_dir / rest if first == "DATA_DIR" else self.directory / endpoint.path
            fault = socket_path_fault(path)
            if fault:
                table.fail(key, f"{fault}; set a shorter [server] data_dir, or name a shorter ipc:// path here")
            return f"ipc://{path}"
        if key == "listen" and endpoint.tcp.host != "localhost" and not is_numeric(endpoint.tcp.host):
            table.fail(key, f"{text!r}: listen at an address of this machine, or at all with tcp://0.0.0.0:PORT")
        if key != "listen" and endpoint.tcp.port == 0:
            table.fail(key, f"{text!r}: port 0 is no port to connect to; write the port the other side listens on")
        host = "127.0.0.1" if endpoint.tcp.host == "localhost" else endpoint.tcp.host  # ZeroMQ binds to no names
        return f"tcp://{HostPort(host, endpoint.tcp.port)}"

    def _store(self, data_dir: Path) -> StoreConfig:
        table, defaults = self._section("store"), Bounds()
        bounds = {
            key: table.number(key, default, low, high)
            for key, default, low, high in (
                ("user_messages", defaults.user_messages, 1, MAX_MESSAGES),
                ("user_bytes", defaults.user_bytes, 1, MAX_STORE_BYTES),
                ("server_messages", defaults.server_messages, 1, MAX_MESSAGES),
                ("server_bytes", defaults.server_bytes, 1, MAX_STORE_BYTES),
                ("messages", defaults.messages, 1, MAX_MESSAGES),
                ("server_outcomes", defaults.server_outcomes, 1, MAX_MESSAGES),
                ("outcomes", defaults.outcomes, 1, MAX_MESSAGES),
                ("dead_letters", defaults.dead_letters, 1, MAX_MESSAGES),
            )
        }
        database = self._database(table)
        return StoreConfig(
            path=None if database is not None else self._store_path(table, data_dir),
            database=database,
            synchronous=table.choice("synchronous", "full", ("full", "normal")),
            bounds=Bounds(
                ttl_s=table.decimal("ttl_s", defaults.ttl_s, MIN_TTL_S, MAX_TTL_S),
                sender_share=table.decimal("sender_share", defaults.sender_share, MIN_SHARE, 1.0),
                total_bytes=table.number("bytes", defaults.total_bytes, 1, MAX_STORE_BYTES),
                **bounds,
            ),
        )

    def _database(self, table: Table) -> Database | None:
        """Return the database that the url names, None for another kind of store. The url is not quoted: there may be a
        password in it."""
        url, schema = table.text("url") or "", table.text("schema")
        if url.partition(":")[0] not in POSTGRES_SCHEMES:
            if schema is not None:
                table.fail("schema", "is for a url that begins with postgresql://; leave it out")
            return None
        fault = url_fault(url) or (schema_fault(schema) if schema is not None else None)
        if fault:
            table.fail("schema" if url_fault(url) is None else "url", fault)
        return Database(url) if schema is None else Database(url, schema)

    def _store_path(self, table: Table, data_dir: Path) -> Path | None:
        url = table.text("url") or f"sqlite:DATA_DIR/{STORE_FILE}"
        kind, _, text = url.partition(":")
        if url == "memory:":
            return None
        if kind in ("redis", "rediss"):
            table.fail("url", "redis is not planned as a store; write sqlite:PATH, or postgresql://USER@HOST/DATABASE")
        if kind != "sqlite" or text.endswith("/") or text[:1] in ("", ":") or "?" in text:
            quoted = "it" if "@" in url else repr(url)  # there may be a password in it
            table.fail(
                "url", f"{quoted} is not sqlite:PATH, postgresql://… or memory:; leave the key out for the default"
            )
        if text.startswith("//"):
            table.fail("url", f'{url!r}: the path follows the colon, as in "sqlite:/var/lib/bester/store.db"')
        first, _, rest = text.partition("/")
        path = data_dir / rest if first == "DATA_DIR" and rest else self.directory / text
        if path.name in OTHERS_FILES:
            table.fail("url", f"{path.name} is Bester's own name for something else; name another file")
        return path

    def _one_budget_a_type(self, handlers: tuple[HandlerConfig, ...]) -> None:
        """Require that handlers of one type have the same limits, as the broker does not distinguish handlers of a
        type."""
        first: dict[str, HandlerConfig] = {}
        for handler in [each for each in handlers if not each.shadow]:
            for type_ in handler.types:
                other = first.setdefault(type_, handler)
                for key in ("timeout_s", "attempts", "commands"):
                    here, there = getattr(handler, key), getattr(other, key)
                    if here != there:
                        self._source.fail(
                            f"handlers.{handler.name}",
                            key,
                            f"is {_value_text(here)} here and {_value_text(there)} in [handlers.{other.name}], "
                            f"which handles {type_!r} too; write the same in both",
                        )

    def _handler(self, name: str, table: Table) -> HandlerConfig:
        given = [key for key in ("app", "command", "socket") if key in table]
        if len(given) != 1:
            problem = f"has {' and '.join(given)}; keep one of them" if given else "names nothing to run"
            example = "" if given else '; add app = "module:attribute", command = ["program"] or socket = "path"'
            table.fail(None, problem + example)
        app = table.text("app")
        if app is not None and not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", app):
            table.fail(
                "app", f'{app!r} is not "module:attribute"; name the module without .py, a colon, and the App in it'
            )
        command = table.texts("command")
        if command == ():
            table.fail("command", 'is empty; write the program and its arguments as ["program", "argument"]')
        auth = self._decides(table)
        types = table.texts("types") if "types" in table else (name,)
        if "order" in table and "socket" not in table:
            remedy = 'in Python write @app.handler(…, order="user"), in another language set order in HELLO'
            table.fail("order", f"is for handlers at a socket; others ask for order themselves: {remedy}")
        return HandlerConfig(
            name=name,
            types=(AUTH_TYPE,) if auth else self._types(table, "types", types or ()),
            workers=table.number("workers", 1, 1, MAX_WORKERS),
            app=app,
            command=command,
            socket=self._socket(table, "socket"),
            order=table.choice("order", "user", ("user", "none")),
            timeout_s=table.decimal("timeout_s", 30.0, MIN_TIMEOUT_S, MAX_TIMEOUT_S) if "timeout_s" in table else None,
            attempts=table.number("attempts", 3, 1, MAX_ATTEMPTS),
            commands=self._commands(table),
            shadow=self._shadow(table),
            auth=auth,
        )

    def _decides(self, table: Table) -> bool:
        """Return whether a handler decides logins, which goes with no key for messages."""
        auth = table.flag("auth")
        for key in ("types", "socket", "timeout_s", "attempts", "commands", "shadow") if auth else ():
            if key in table:
                table.fail(key, f"is not for a handler that decides logins ({AUTH_TYPE} alone); leave the key out")
        return auth

    def _nobody_decides(self, fabric: FabricConfig, handlers: tuple[HandlerConfig, ...]) -> None:
        """Require that no handler is to decide logins where everybody is let in."""
        for section in login_deciders(fabric, handlers)[:1]:
            why = f'is "open", which lets everybody in, and [{section}] is to decide logins; remove one of them'
            self._source.fail("accounts", "auth", why)

    def _shadow(self, table: Table) -> bool:
        """Return whether a handler is a shadow; limits on what is carried out mean nothing for one."""
        shadow = table.flag("shadow")
        for key in ("workers", "timeout_s", "attempts", "commands") if shadow else ():
            if key in table:
                why = "several would share the copies" if key == "workers" else "nothing of a shadow is carried out"
                table.fail(key, f"is not for a shadow: {why}; leave the key out")
        return shadow

    def _users_of(self, type_: str, table: Table) -> frozenset[str] | None:
        """Return the users who may send a type, None for all."""
        if table.raw("users") in (None, ANY):
            return None
        users = table.texts("users") if isinstance(table.raw("users"), list) else None
        if users is None:
            table.fail("users", f'is a list of user names, or "{ANY}"; write users = ["…"]')
        return frozenset(users)

    def _types(self, table: Table, key: str, types: tuple[str, ...], *, granted: bool = False) -> tuple[str, ...]:
        """Return the types of a handler. `granted`: a key may grant the deciding of logins as well."""
        if not types:
            table.fail(key, "is empty; name at least one message type")
        for each in types:
            fault = None if granted and each == AUTH_TYPE else type_fault(each)
            if each == AUTH_TYPE and fault is not None:
                table.fail(key, f"{fault}, or write auth = true for a handler that decides logins")
            if fault:
                table.fail(key if key in table else None, fault)
        return tuple(dict.fromkeys(types))

    def _peer(self, name: str, table: Table) -> PeerConfig:
        if ("fabric" in table) == ("native" in table):
            both = "fabric" in table
            remedy = (
                "has both fabric and native; keep one" if both else 'needs fabric = "tcp://…" or native = "host:port"'
            )
            table.fail(None, remedy)
        fabric, native = table.text("fabric"), table.text("native")
        endpoint = self._endpoint(table, "fabric", fabric, self.directory) if fabric else None
        public = table.text("key")
        if endpoint is None and public is not None:
            table.fail("key", "is for servers with fabric; a native one has no key, so leave it out")
        if endpoint is not None and endpoint.startswith("ipc://") and public is not None:
            table.fail("key", "is for tcp://; who may open the socket's file is trusted, so leave it out")
        if endpoint is not None and public is None and must_encrypt(endpoint):
            table.fail("fabric", f'{fabric!r} is beyond this machine; add key = "…", which `bester keys` prints there')
        tls = table.flag("tls")
        if native and native.startswith("tls://"):
            if "tls" in table and not tls:
                table.fail("native", f"{native!r} says TLS, and tls = false says none; remove one of them")
            native, tls = native.removeprefix("tls://"), True
        if not tls and "ca" in table:
            table.fail("ca", "is for a server with TLS; add tls = true, or leave this key out")
        address = table.checked("native", parse_host_port, native) if native else None
        if address and address.port == 0:
            table.fail("native", "port 0 is no port to connect to; write the port the server listens on")
        for key, habit in (
            ("reports", "always reports"), ("order", "always keeps the order of a type"), ("tls", "is known by its key")
        ):  # fmt: skip
            if fabric and key in table:
                table.fail(key, f"is for native servers: a fabric one {habit}; leave the key out")
        return PeerConfig(
            name=name,
            fabric=endpoint,
            native=address,
            accept_types=self._types_of_peer(table, "accept_types", frozenset()),
            send_types=self._types_of_peer(table, "send_types", None),
            trace=table.flag("trace"),
            reports=table.flag("reports", default=True),
            ordered=table.choice("order", "none", ("none", "type")) == "type",
            key=None if public is None else table.checked("key", parse_key, public),
            tls=tls,
            ca=self._path(table, "ca"),
        )

    def _types_of_peer(self, table: Table, key: str, default: frozenset[str] | None) -> frozenset[str] | None:
        """Return the types that a server may send or be sent, None for every public type."""
        types = table.texts(key)
        if types is None:
            return default
        for each in types:
            fault = None if each == EVERY else type_fault(each)
            if fault:
                table.fail(key, fault)
        return None if EVERY in types else frozenset(types)

    def _path(self, table: Table, key: str) -> Path | None:
        text = table.text(key)
        return None if text is None else self.directory / text

    def _file(self, table: Table, key: str, data_dir: Path) -> Path | None:
        """Return the path of a file, which may begin with DATA_DIR."""
        text = table.text(key)
        if text is None:
            return None
        first, _, rest = text.partition("/")
        return data_dir / rest if first == "DATA_DIR" and rest else self.directory / text

    def _socket(self, table: Table, key: str) -> Path | None:
        path = self._path(table, key)
        fault = socket_path_fault(path) if path else None
        if fault:
            table.fail(key, f"{fault}; choose a shorter one")
        return path


def _nearest(listen: tuple[str, ...]) -> tuple[str, ...]:
    """Return where programs on this machine connect by default: by ipc, which needs no keys, if they can."""
    return next(((each,) for each in listen if each.startswith("ipc://")), listen[:1])


def _value_text(value: float | frozenset[str] | None) -> str:
    if value is None:
        return "not written"
    return str(sorted(value)) if isinstance(value, frozenset) else f"{value:g}"
