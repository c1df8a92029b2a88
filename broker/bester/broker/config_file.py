"""Reader of `bester.toml` into a Config; every mistake becomes one line with its remedy.

No key is accepted and ignored: config_keys.py lists every one. The sections that have names, as [handlers.NAME], are
read in config_entries.py. This module opens no socket, starts no program and makes no directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from bester.broker import config_entries
from bester.broker.config import (
    SERVER_KEY,
    STORE_FILE,
    Config,
    FabricConfig,
    NativeConfig,
    OperatorConfig,
    ServerConfig,
    StoreConfig,
    TlsConfig,
    defaults,
    host_name,
    listener_fault,
    name_fault,
)
from bester.broker.config_keys import HINTS, KEYS, Key
from bester.broker.config_listeners import clash_of
from bester.broker.config_paths import Paths, directory_of
from bester.broker.postgres import SCHEMES as POSTGRES_SCHEMES
from bester.broker.postgres import Database, may_hold_secret, schema_fault, url_fault
from bester.broker.store_requests import Bounds
from bester.broker.toml_table import NO_HINTS, Source, Table
from bester.broker.wire.address import HostPort, is_loopback, parse_host_port, parse_network, parse_origin
from bester.broker.wire.keys import parse_key
from bester.broker.wire.messages import MAX_BODY_BYTES
from bester.broker.wire.type_names import type_fault

FILE = Path("bester.toml")
"""Default file of every command, if present."""
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
PLAIN_PAGE = "[operator] http is beyond this machine without TLS: the token passes in plain text; add cert and key"
FORGETFUL = '[store] url is memory:, so queued messages are lost with this process; "sqlite:…" names a file for them'
OTHERS_FILES = ("accounts.db", "server.lock", "fabric.sock", SERVER_KEY)
"""Other files of the data directory and of a backup, which a store must not replace."""


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
        self._paths = Paths(directory_of(source.path))
        sections = {name.partition(".")[0] for name in KEYS}  # parties are a table inside of [fabric]
        self._top = Table(source, "", source.tables(), sections, HINTS[""])

    def config(self) -> Config:
        """Return the configuration. Raises ConfigError with the first mistake."""
        server = self._server()
        paths = self._paths._replace(data_dir=server.data_dir)
        servers = {name: config_entries.server(name, table, self._paths) for name, table in self._named("servers")}
        if server.name in servers:
            self._source.fail(
                f"servers.{server.name}", None, "is this server itself; remove it, or rename [server] name"
            )
        fabric = self._fabric(paths)
        config_entries.require_one_owner_a_key(self._source, fabric, servers)
        informer = self._section("informer")
        store = self._store(paths)
        handlers = tuple(config_entries.handler(name, table, paths) for name, table in self._named("handlers"))
        federation = self._section("federation")
        users = {name: config_entries.users_of(table) for name, table in self._named("types", name_fault=type_fault)}
        config_entries.require_one_budget_a_type(self._source, handlers)
        auth = self._section("accounts").choice("auth", "accounts", ("accounts", "open"))
        if auth == "open":
            config_entries.require_no_login_decider(self._source, fabric, handlers)
        operator = self._operator()
        config = Config(
            path=self._source.path,
            directory=self._paths.directory,
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
            informer=paths.socket(informer, "unix"),
            operator=operator,
            notices=tuple(f"{self._source.path}: {each}" for each in self._notices(store, operator)),
        )
        clash = clash_of(config)
        if clash is not None:
            listener, fault = clash
            self._source.fail(listener.section, listener.key, fault)
        return config

    @staticmethod
    def _notices(store: StoreConfig, operator: OperatorConfig) -> Iterator[str]:
        if not (store.path or store.database):
            yield FORGETFUL
        if operator.http is not None and operator.cert is None and not is_loopback(operator.http.host):
            yield PLAIN_PAGE

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
        data_dir = self._paths.path(table, "data_dir") or self._paths.directory / "bester-data"
        return ServerConfig(name or host_name(), data_dir, broker or host_name())

    def _native(self) -> NativeConfig:
        values = self._top.raw("native") if "native" in self._top else {}
        table = Table(self._source, "native", values, (*KEYS["native"], "tls"), HINTS["native"])
        insecure = table.flag("insecure")
        tcp4, tcp6 = (self._listener(table, key, insecure) for key in ("tcp4", "tcp6"))
        unix = self._paths.socket(table, "unix")
        tls = self._tls(table.raw("tls")) if "tls" in table else None
        text = table.text("websocket")
        websocket = None if text is None else table.checked("websocket", parse_host_port, text)
        if websocket is not None and not (insecure or tls is not None or is_loopback(websocket.host)):
            table.fail(
                "websocket",
                "would take passwords in plain text from other machines; add [native.tls], or use 127.0.0.1",
            )
        origins = tuple(
            table.checked("websocket_origins", parse_origin, text) for text in table.texts("websocket_origins") or ()
        )
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
        cert, key = self._paths.path(table, "cert"), self._paths.path(table, "key")
        if cert is None or key is None:
            missing = "cert" if cert is None else "key"
            table.fail(None, f'needs {missing} = "FILE": cert is the certificate of this server, key its private key')
        client_ca = self._paths.path(table, "client_ca")
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
        text = table.text("http")
        files = {key: self._paths.path(table, key) for key in ("token", "cert", "key", "client_ca")}
        http = None if text is None else table.checked("http", parse_host_port, text)
        for key, path in files.items():
            if http is None and path is not None:
                table.fail(key, 'is for the page; add http = "127.0.0.1:2227"')
        if (files["cert"] is None) != (files["key"] is None):
            given, missing = ("key", "cert") if files["cert"] is None else ("cert", "key")
            table.fail(given, f'needs {missing} = "FILE": cert is the certificate of the page, key its private key')
        if files["client_ca"] is not None and files["cert"] is None:
            table.fail("client_ca", "is for TLS; add cert and key, the certificate of the page and its private key")
        if http is not None and not is_loopback(http.host) and files["token"] is files["client_ca"] is None:
            remedy = "add token = FILE, or client_ca = FILE with cert and key, or use 127.0.0.1"
            table.fail("http", f"is beyond this machine, where everybody could look; {remedy}")
        return OperatorConfig(http, **files)

    def _fabric(self, paths: Paths) -> FabricConfig:
        table = self._section("fabric")
        listen = table.texts("listen") if "listen" in table else ("ipc://DATA_DIR/fabric.sock",)
        bound = paths.endpoints(table, "listen", listen or ())
        if not bound:
            table.fail("listen", "is empty; leave the key out for the default")
        connect = table.texts("connect")
        if connect == ():
            table.fail("connect", "is empty; leave the key out to connect where the broker listens")
        server_key = table.text("server_key")
        parties = {name: config_entries.party(name, each) for name, each in self._named("fabric.parties", table)}
        return FabricConfig(
            listen=bound,
            connect=_nearest(bound) if connect is None else paths.endpoints(table, "connect", connect),
            key=paths.file(table, "key"),
            server_key=None if server_key is None else table.checked("server_key", parse_key, server_key),
            curve=table.flag("curve"),
            parties=MappingProxyType(parties),
        )

    def _store(self, paths: Paths) -> StoreConfig:
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
            path=None if database is not None else self._store_path(table, paths),
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

    def _store_path(self, table: Table, paths: Paths) -> Path | None:
        url = table.text("url") or f"sqlite:DATA_DIR/{STORE_FILE}"
        quoted = "it" if may_hold_secret(url) else repr(url)
        kind, _, text = url.partition(":")
        if url == "memory:":
            return None
        if kind in ("redis", "rediss"):
            table.fail("url", "redis is not planned as a store; write sqlite:PATH, or postgresql://USER@HOST/DATABASE")
        if kind != "sqlite" or text.endswith("/") or text[:1] in ("", ":") or "?" in text:
            table.fail(
                "url", f"{quoted} is not sqlite:PATH, postgresql://… or memory:; leave the key out for the default"
            )
        if text.startswith("//"):
            table.fail("url", f'{quoted}: the path follows the colon, as in "sqlite:/var/lib/bester/store.db"')
        path = paths.expanded(text)
        if path.name in OTHERS_FILES:
            table.fail("url", f"{path.name} is Bester's own name for something else; name another file")
        return path


def _nearest(listen: tuple[str, ...]) -> tuple[str, ...]:
    """Return where programs on this machine connect by default: by ipc, which needs no keys, if they can."""
    return next(((each,) for each in listen if each.startswith("ipc://")), listen[:1])
