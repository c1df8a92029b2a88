"""`bester.toml`: every key is read, and every mistake is one line that names file, line, key and remedy."""

from collections.abc import Iterator
from dataclasses import fields, replace
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.broker import besterd, config_file, config_keys
from bester.broker.config import (
    STOCK_HANDLERS,
    Config,
    HandlerConfig,
    PeerConfig,
    StoreConfig,
    defaults,
    host_name,
    name_fault,
)
from bester.broker.postgres import Database
from bester.broker.store_requests import Bounds
from bester.broker.wire.address import HostPort
from bester.broker.wire.codes import ConfigError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Return a directory whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="b-") as directory:
        yield Path(directory)


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "bester.toml"
    path.write_text(text)
    return config_file.load(path)


FULL = """
[server]
name = "s1.example"
data_dir = "data"
[native]
tcp4 = "127.0.0.1:0"
tcp6 = "[::1]:2224"
unix = "native.sock"
max_frame = 2048
max_connections = 10
max_connections_per_user = 3
max_connections_per_address = 4
[fabric]
listen = ["ipc://DATA_DIR/f.sock", "tcp://localhost:2225", "ipc://here.sock"]
connect = ["tcp://127.0.0.1:2225"]
[store]
url = "sqlite:DATA_DIR/kept/messages.db"
synchronous = "normal"
ttl_s = 0x10
user_messages = 1
user_bytes = 2
sender_share = 0.25
server_messages = 3
server_bytes = 4
messages = 5
bytes = 6
dead_letters = 7
[accounts]
auth = "open"
[handlers.chat]
workers = 4
app = "shop.chat:app"
timeout_s = 2.5
attempts = 1
commands = ["sendClients"]
[handlers.node]
types = ["a", "b c"]
command = ["node", "chat.js"]
[handlers.old]
socket = "old.sock"
order = "none"
[handlers.older]
socket = "older.sock"
[servers.g]
fabric = "tcp://127.0.0.1:3000"
accept_types = ["english"]
send_types = ["*"]
[servers."far.example"]
native = "far.example:2223"
accept_types = ["*", "a"]
send_types = ["a", "b"]
[types."a/b c"]
users = ["ann", "bob"]
[types.free]
users = "any"
[federation]
accept = "open"
reachable = ["127.0.0.1", "fd00::/8"]
[informer]
unix = "bInformer"
"""


def test_every_key_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, FULL)
    assert (config.server.name, config.server.data_dir) == ("s1.example", tmp_path / "data")
    native = config.native
    assert (native.tcp4, native.tcp6) == (HostPort("127.0.0.1", 0), HostPort("::1", 2224))
    assert native.unix == tmp_path / "native.sock"
    limits = (native.max_connections, native.max_connections_per_user, native.max_connections_per_address)
    assert (native.max_frame, *limits) == (2048, 10, 3, 4)
    assert config.fabric.listen == (
        f"ipc://{tmp_path}/data/f.sock",
        "tcp://127.0.0.1:2225",
        f"ipc://{tmp_path}/here.sock",
    )
    assert config.fabric.connect == ("tcp://127.0.0.1:2225",)
    kept = Bounds(16.0, user_messages=1, user_bytes=2, sender_share=0.25, server_messages=3, server_bytes=4)
    assert config.store == StoreConfig(
        tmp_path / "data/kept/messages.db", "normal", replace(kept, messages=5, total_bytes=6, dead_letters=7)
    )
    assert config.notices == ()
    assert config.auth == "open"
    assert config.handlers == (
        HandlerConfig(
            "chat", ("chat",), 4, app="shop.chat:app", timeout_s=2.5, attempts=1, commands=frozenset({"sendClients"})
        ),
        HandlerConfig("node", ("a", "b c"), command=("node", "chat.js")),
        HandlerConfig("old", ("old",), socket=tmp_path / "old.sock", order="none"),
        HandlerConfig("older", ("older",), socket=tmp_path / "older.sock", order="user"),
    )
    assert config.servers == {
        "g": PeerConfig("g", fabric="tcp://127.0.0.1:3000", accept_types=frozenset({"english"})),
        "far.example": PeerConfig(
            "far.example", native=HostPort("far.example", 2223), send_types=frozenset({"a", "b"})
        ),
    }
    assert config.type_users == {"a/b c": {"ann", "bob"}}
    assert config.reachable == (ip_network("127.0.0.1/32"), ip_network("fd00::/8"))
    assert (config.accept, config.informer) == ("open", tmp_path / "bInformer")


def test_empty_file_has_the_defaults_and_no_handlers(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    without = defaults(tmp_path)
    assert (config.server, config.native, config.fabric) == (without.server, without.native, without.fabric)
    assert (config.auth, config.accept, config.handlers) == ("accounts", "listed", ())
    assert config.store == without.store == StoreConfig(tmp_path / "bester-data/store.db", "full", Bounds())
    assert without.handlers == STOCK_HANDLERS
    assert without.native.tcp4 == HostPort("127.0.0.1", 2223)
    assert without.fabric.listen == without.fabric.connect == (f"ipc://{tmp_path}/bester-data/fabric.sock",)


def test_without_a_file_the_defaults_hold_and_bester_toml_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file.load().path is None
    (tmp_path / "bester.toml").write_text('[server]\nname = "found"\n')
    assert config_file.load().server.name == "found"


def test_named_listener_replaces_the_default(tmp_path: Path) -> None:
    native = load(tmp_path, '[native]\nunix = "n.sock"\n').native
    assert (native.tcp4, native.tcp6) == (None, None)
    assert load(tmp_path, "[native]\nmax_frame = 4096\n").native.tcp4 == HostPort("127.0.0.1", 2223)


def test_bridges_and_handlers_connect_where_no_key_is_needed_or_the_broker_listens_first(tmp_path: Path) -> None:
    fabric = load(tmp_path, '[fabric]\nlisten = ["tcp://127.0.0.1:2225", "ipc://DATA_DIR/f.sock"]\n').fabric
    assert fabric.connect == (f"ipc://{tmp_path}/bester-data/f.sock",)
    fabric = load(tmp_path, '[fabric]\nlisten = ["tcp://127.0.0.1:2225", "tcp://127.0.0.1:2226"]\n').fabric
    assert fabric.connect == ("tcp://127.0.0.1:2225",)


def test_insecure_opens_the_plain_listener(tmp_path: Path) -> None:
    native = load(tmp_path, '[native]\ntcp4 = "0.0.0.0:2223"\ninsecure = true\n').native
    assert native.tcp4 == HostPort("0.0.0.0", 2223)


def test_store_is_a_file_or_memory(tmp_path: Path) -> None:
    def path(url: str) -> Path | None:
        return load(tmp_path, f'[store]\nurl = "{url}"\n').store.path

    assert path("sqlite:kept.db") == tmp_path / "kept.db"
    assert path("sqlite:/var/kept.db") == Path("/var/kept.db")
    assert path("memory:") is None
    notices = load(tmp_path, '[store]\nurl = "memory:"\n').notices
    assert len(notices) == 1
    assert "queued messages are lost with this process" in notices[0]
    page = '[operator]\nhttp = "0.0.0.0:1"\ntoken = "t"\n'
    assert ["token passes in plain text" in each for each in load(tmp_path, page).notices] == [True]
    assert load(tmp_path, page + 'cert = "c"\nkey = "k"\n').notices == ()


def test_store_in_a_database_has_a_namespace(tmp_path: Path) -> None:
    url = "postgresql://u:secret@h/d"
    config = load(tmp_path, f'[server]\nname = "s1"\nbroker = "b1"\n[store]\nurl = "{url}"\nschema = "s_1"\n')
    assert (config.store.path, config.store.database) == (None, Database(url, "s_1"))
    assert (config.server.broker, config.notices) == ("b1", ())
    assert "secret" not in repr(config)
    plain = load(tmp_path, f'[store]\nurl = "{url}"\n')
    assert (plain.store.database, plain.server.broker) == (Database(url, "bester"), host_name())


def test_page_states_the_default_bounds() -> None:
    expected = {name: key.default for name, key in config_keys.KEYS["store"].items()}
    bounds = {field.name: getattr(Bounds(), field.name) for field in fields(Bounds)}
    bounds["bytes"] = bounds.pop("total_bytes")
    assert {name: float(expected[name]) for name in bounds} == bounds


def test_two_handlers_may_serve_one_type(tmp_path: Path) -> None:
    config = load(tmp_path, '[handlers.a]\ntypes=["t"]\napp="m:a"\n[handlers.b]\ntypes=["t"]\napp="m:b"\n')
    assert [handler.types for handler in config.handlers] == [("t",), ("t",)]


KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
MISTAKES = [
    ("[native]\ntpc4 = '127.0.0.1:1'", ":2: [native] tpc4: unknown key; did you mean tcp4?"),
    ("[natve]\n", "natve: unknown section; did you mean native?"),
    ("[zzz]\n", ":1: zzz: unknown section; known are accounts, fabric, "),
    ("name = 'x'\n", ":1: name: unknown section"),
    ("\n[logging]\nlevel = 3", ":2: logging: unknown section; the log is set on the command line, with --log"),
    ("[native]\ntcp = '127.0.0.1:1'", ":2: [native] tcp: unknown key; did you mean tcp4 or tcp6?"),
    ("[native]\nTCP4 = '127.0.0.1:1'", "TCP4: unknown key; did you mean tcp4?"),
    ("[native]\nport = 1", 'port: unknown key; addresses are written as tcp4 = "HOST:PORT" in [native]'),
    (
        "[handlers.a]\napp = 'm:a'\nzzz = 3",
        "unknown key; known are app, attempts, auth, command, commands, order, shadow,",
    ),
    ("[servers.b.example]\nnative = 'h:1'", ":1: [servers.b.example]: a name with dots stands in quotes; write"),
    ("[servers.b.example.org]\nnative = 'h:1'", 'stands in quotes; write [servers."b.example.org"]'),
    ("[handlers.my.chat]\napp = 'm:a'", 'stands in quotes; write [handlers."my.chat"]'),
    ("[servers.b]\nnative = 'h:1'\n[servers.b.zzz]\nnative = 'h:1'", "[servers.b] zzz: unknown key; known are"),
    ("[servers]\nnative = 'h:1'", ":2: [servers] native: belongs below a name; write [servers.NAME] above it"),
    ("[native]\nwebsocket = '0.0.0.0:1'", "[native] websocket: would take passwords in plain text from other machines"),
    ("[native]\nwebsocket = 'here'", "'here' is not HOST:PORT"),
    ("[native]\nwebsockets = '127.0.0.1:2226'", "websockets: unknown key"),
    ("[native.tls]\nlisten = 'x:1'", "[native.tls]: needs cert"),
    (
        "[store]\nurl = 'redis://127.0.0.1'",
        ":2: [store] url: redis is not planned as a store; write sqlite:PATH, or postgresql:",
    ),
    ("[store]\nurl = 'kept.db'", "'kept.db' is not sqlite:PATH, postgresql://… or memory:; leave the key out"),
    ("[store]\nurl = 'sqlite:'", "is not sqlite:PATH, postgresql://… or memory:"),
    ("[store]\nurl = 'sqlite::memory:'", "is not sqlite:PATH, postgresql://… or memory:"),
    ("[store]\nurl = 'sqlite:///var/kept.db'", 'the path follows the colon, as in "sqlite:/var'),
    (
        "[store]\nurl = 'sqlite:DATA_DIR/accounts.db'",
        "accounts.db is Bester's own name for something else; name another file",
    ),
    ("[store]\nschema = 'x'", ":2: [store] schema: is for a url that begins with postgresql://"),
    ("[store]\nurl = 'postgresql://h/d'\nschema = 'X'", ":3: [store] schema: 'X' is no plain name"),
    ("[server]\nbroker = 'a b'", ":2: [server] broker: "),
    ("[store]\nsynchronous = 'off'", "'off' is not one of full, normal"),
    ("[store]\nttl_s = 0.5", ":2: [store] ttl_s: is a number from 1 to 31536000"),
    ("[store]\nttl_s = nan", "is a number from 1 to"),
    ("[store]\nsender_share = 0", "is a number from 0.001 to 1"),
    ("[store]\nsender_share = 1.5", "is a number from 0.001 to 1"),
    ("[store]\nuser_messages = 0", "is a whole number from 1 to 1000000000"),
    ("[store]\ndead_letter = 1", "unknown key; did you mean dead_letters?"),
    ("[operators]\nhttp = '127.0.0.1:1'", "operators: unknown section"),
    (
        "[operator]\nhttp = '0.0.0.0:1'",
        "[operator] http: is beyond this machine, where everybody could look; add token",
    ),
    ("[operator]\nhttp = '0.0.0.0:1'\ncert = 'c'\nkey = 'k'", "add token = FILE, or client_ca = FILE with cert"),
    ("[operator]\nhttp = '127.0.0.1:1'\ncert = 'c'", '[operator] cert: needs key = "FILE"'),
    ("[operator]\nhttp = '127.0.0.1:1'\nkey = 'k'", '[operator] key: needs cert = "FILE"'),
    ("[operator]\nhttp = '0.0.0.0:1'\nclient_ca = 'a'", "[operator] client_ca: is for TLS; add cert and key"),
    ("[operator]\nclient_ca = 'a'", '[operator] client_ca: is for the page; add http = "127.0.0.1:2227"'),
    ("[operator]\ntoken = 'x'", '[operator] token: is for the page; add http = "127.0.0.1:2227"'),
    ("[operator]\nhttp = 'here'", "'here' is not HOST:PORT"),
    ("[servers.g]\nfabric = 'tcp://127.0.0.1:1'\nkey = 'x'", ":3: [servers.g] key: a key is 40 characters long"),
    (f"[servers.g]\nfabric = 'tcp://127.0.0.1:1'\nkey = '{'~' * 40}'", "and no other characters"),
    (f"[servers.g]\nfabric = 'tcp://127.0.0.1:1'\nkey = '{'#' * 40}'", "these 40 characters are no key"),
    (f"[servers.g]\nfabric = 'ipc://x'\nkey = '{KEY}'", "is for tcp://"),
    (f"[servers.g]\nnative = 'g:1'\nkey = '{KEY}'", "is for servers with fabric"),
    (f"[fabric.parties.h]\nkey = '{KEY}'", "[fabric.parties.h]: has no role"),
    ("[fabric.parties.h]\nrole = 'handler'", "[fabric.parties.h]: has no key"),
    (f"[fabric.parties.h]\nkey = '{KEY}'\nrole = 'handler'", "is empty; name at least one message type"),
    (f"[fabric.parties.h]\nkey = '{KEY}'\nrole = 'server'", "'server' is not one of handler, bridge, operator"),
    (f"[fabric.parties.h]\nkey = '{KEY}'\nrole = 'bridge'\ntypes = ['a']", "types: is for handlers"),
    (
        f"[fabric.parties.h]\nkey = '{KEY}'\nrole = 'handler'\ntypes = ['a']\ncommands = ['sendClient']",
        "did you mean sendClients?",
    ),
    (
        f"[fabric.parties.a]\nkey = '{KEY}'\nrole = 'bridge'\n[fabric.parties.b]\nkey = '{KEY}'\nrole = 'bridge'",
        "is the key of [fabric.parties.a] too",
    ),
    (
        f"[fabric.parties.a]\nkey = '{KEY}'\nrole = 'bridge'\n[servers.b]\nfabric = 'tcp://b:1'\nkey = '{KEY}'",
        "is the key of [servers.b] too",
    ),
    ("[fabric]\nserver_key = 'x'", ":2: [fabric] server_key: a key is 40 characters long"),
    ("[handlers.a]\napp = 'm:a'\ntimeout_s = 0", ":3: [handlers.a] timeout_s: is a number from 0.1 to 86400"),
    ("[handlers.a]\napp = 'm:a'\ntimeout_s = true", "is a number from 0.1 to 86400"),
    ("[handlers.a]\napp = 'm:a'\ntimeout_s = inf", "is a number from 0.1 to 86400"),
    ("[handlers.a]\napp = 'm:a'\nattempts = 0", "is a whole number from 1 to 100"),
    ("[handlers.a]\napp = 'm:a'\nretries = 3", ":3: [handlers.a] retries: unknown key; did you mean attempts?"),
    (
        "[handlers.a]\ntypes = ['t']\napp = 'm:a'\ntimeout_s = 5\n[handlers.b]\ntypes = ['s', 't']\napp = 'm:b'",
        ": [handlers.b] timeout_s: is not written here and 5 in [handlers.a], which handles 't' too; write",
    ),
    (
        "[handlers.a]\ntypes = ['t']\napp = 'm:a'\n[handlers.b]\ntypes = ['t']\napp = 'm:b'\nattempts = 9",
        ":7: [handlers.b] attempts: is 9 here and 3 in [handlers.a]",
    ),
    ("server = 3", "server: is a table; write [server]"),
    ("[[server]]\nname = 'x'", "is a table; write [server]"),
    ("handlers = 3", "is a table; write [handlers]"),
    ("[handlers]\nchat = 3", "[handlers] chat: is a table; write [handlers.chat]"),
    ("[server]\nname = s1", "not TOML"),
    ("a = " + "[" * 5000, "nested too deeply; this is no configuration"),
    ("a = " + "1" * 5000, "a number of too many digits; this is no configuration"),
    ("[server]\nname = 7", ':2: [server] name: is text; write name = "…"'),
    ("[server]\nname = ''", "is empty"),
    ("[server]\nname = 'a/b'", "'a/b': a name is"),
    ("[server]\nname = 'a:1'", "a name is"),
    ("[server]\nname = 'a b'", "a name is"),
    ('[server]\nname = "a\\nb"', "a name is"),
    ('[server]\ndata_dir = "a\\u0000"', "holds a zero byte"),
    ("[native]\ntcp4 = 'here'", "'here' is not HOST:PORT"),
    ("[native]\ntcp4 = '127.0.0.1:99999'", "the port is a number from 0 to 65535"),
    ("[native]\ntcp4 = '::1:5'", "in brackets"),
    ("[native]\ntcp4 = '[::1]:5'", "belongs under tcp6"),
    ("[native]\ntcp6 = '127.0.0.1:5'", "belongs under tcp4"),
    (
        "[native]\ntcp4 = '0.0.0.0:2223'",
        "beyond loopback and the listener speaks plain text; use 127.0.0.1, or set insecure",
    ),
    ("[native]\ntcp6 = '[::]:2223'", "use [::1], or set insecure = true"),
    ("[native]\ntcp4 = 'example.org:2223'", "beyond loopback"),
    ("[native]\ninsecure = 'yes'", "is true or false"),
    ("[native]\nmax_frame = 10", "is a whole number from 1024 to"),
    ("[native]\nmax_frame = true", "is a whole number"),
    ("[native]\nmax_connections = 1.5", "is a whole number"),
    (f"[native]\nunix = '{'x' * 200}'", "a Unix socket's path has 107 at most; choose a shorter one"),
    (f"[server]\ndata_dir = '{'x' * 100}'", "107 at most; set a shorter [server] data_dir"),
    ("[fabric]\nlisten = 'ipc://x'", 'is a list of texts; write listen = ["…"]'),
    ("[fabric]\nlisten = []", "is empty; leave the key out for the default"),
    ("[fabric]\nconnect = []", "is empty"),
    ("[fabric]\nlisten = ['127.0.0.1:5']", "is not ipc://PATH or tcp://HOST:PORT"),
    ("[fabric]\nlisten = ['inproc://x']", "is not ipc://PATH or tcp://HOST:PORT"),
    ("[fabric]\nlisten = ['tcp://*:5']", "listen at an address of this machine"),
    ("[fabric]\nlisten = ['tcp://g.example:5']", "listen at an address of this machine"),
    ("[fabric]\nconnect = ['tcp://127.0.0.1:0']", "port 0 is no port to connect to"),
    ("[fabric]\nlisten = ['ipc://a', 'ipc://a']", "is named twice"),
    ("[accounts]\nauth = 'none'", "'none' is not one of accounts, open"),
    ("[handlers.a]\ntypes = ['t']", ":1: [handlers.a]: names nothing to run; add app"),
    ("[handlers.a]\napp = 'm:a'\nsocket = 's'", "has app and socket; keep one of them"),
    ("[handlers.a]\nsocket = 's'\norder = 'type'", "order: 'type' is not one of user, none"),
    (
        "[handlers.a]\napp = 'm:a'\norder = 'user'",
        "order: is for handlers at a socket; others ask for order themselves",
    ),
    ("[handlers.a]\ncommand = ['x']\norder = 'none'", "another language set order in HELLO"),
    ("[handlers.a]\napp = 'm.py'", "'m.py' is not \"module:attribute\""),
    ("[handlers.a]\ncommand = 'node chat.js'", 'is a list of texts; write command = ["…"]'),
    ("[handlers.a]\ncommand = []", "is empty; write the program"),
    ("[handlers.a]\napp = 'm:a'\nworkers = 0", "is a whole number from 1 to 256"),
    ("[handlers.a]\napp = 'm:a'\ntypes = []", "is empty; name at least one"),
    ("[handlers.a]\napp = 'm:a'\ntypes = ['bester.auth']", "'bester.auth' is reserved"),
    ("[handlers.a]\napp = 'm:a'\ntypes = ['bester.auth']", "or write auth = true for a handler that decides logins"),
    ("[handlers.a]\napp = 'm:a'\nauth = true\ntypes = ['a']", "types: is not for a handler that decides logins"),
    ("[handlers.a]\napp = 'm:a'\nauth = true\nshadow = true", "shadow: is not for a handler that decides logins"),
    ("[handlers.a]\nsocket = 's'\nauth = true", "socket: is not for a handler that decides logins"),
    ("[handlers.a]\napp = 'm:a'\nauth = 1", "auth: is true or false"),
    (
        "[accounts]\nauth = 'open'\n[handlers.a]\napp = 'm:a'\nauth = true",
        '[accounts] auth: is "open", which lets everybody in, and [handlers.a] is to decide logins',
    ),
    (
        f"[accounts]\nauth = 'open'\n[fabric.parties.p]\nkey = '{KEY}'\nrole = 'handler'\ntypes = ['bester.auth']",
        "[fabric.parties.p] is to decide logins",
    ),
    (f"[fabric.parties.p]\nkey = '{KEY}'\nrole = 'handler'\ntypes = ['bester.outcome']", "is reserved"),
    ("[handlers.dummy]\napp = 'm:a'", "'dummy' is reserved"),
    ("[handlers.a]\napp = 'm:a'\ntypes = ['a,b']", "without commas"),
    ("[handlers.'a b']\napp = 'm:a'", "'a b': a name is"),
    ("[servers.g]\n", "needs fabric = "),
    ("[servers.g]\nfabric = 'tcp://127.0.0.1:1'\nnative = 'g:1'", "has both fabric and native"),
    ("[servers.g]\nnative = 'g'", "'g' is not HOST:PORT"),
    ("[servers.g]\nnative = 'g:0'", "port 0"),
    ("[servers.g]\nfabric = 'tcp://g.example:1'", "is beyond this machine; add key"),
    ("[server]\nname = 'g'\n[servers.g]\nnative = 'g:1'", "is this server itself"),
    ("[servers.g]\nnative = 'g:1'\naccept_types = ['chat,news']", "without commas"),
    ("[handlers.a]\napp = 'a:a'\ntypes = ['a,b']", "without commas"),
    ("[servers.g]\nnative = 'g:1'\naccept_types = 'a'", "is a list of texts"),
    ("[servers.g]\nnative = 'g:1'\naccept_types = ['bester.auth']", "is reserved for Bester itself"),
    ("[servers.g]\nnative = 'g:1'\nsend_types = ['dummy']", "is reserved for Bester itself"),
    ("[types.dummy]\nusers = []", "is reserved for Bester itself"),
    ("[types.a]\nusers = 'all'", 'is a list of user names, or "any"'),
    ("[types.a.b]\nusers = []", 'write [types."a.b"]'),
    ("[handlers.a]\napp = 'm:a'\ncommands = ['sendClient']", "did you mean sendClients?"),
    ("[federation]\nreachable = ['s2.example']", "is no IP address and no network"),
    ("[federation]\naccept = 'all'", "'all' is not one of listed, open, none"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[expected[:40] for _, expected in MISTAKES])
def test_mistake_is_one_line_with_its_position(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/bester.toml")
    assert expected in line
    assert line.isprintable()
    assert len(line) < 500


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for path, expected in ((tmp_path / "none.toml", "No such file"), (tmp_path, "directory"), (binary, "not UTF-8")):
        with pytest.raises(ConfigError, match=expected):
            config_file.load(path)


def test_names_of_servers() -> None:
    assert [name_fault(name) for name in ("s1", "s1.example", "a_b-c", "A")] == [None] * 4
    assert all(name_fault(name) for name in ("", ".", "-a", "a-", "é", "a" * 101, "a\n"))


def rows(page: str) -> list[list[str]]:
    lines = (DOCS / page).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0].startswith("`")]


def test_reference_shows_exactly_the_keys_of_the_code() -> None:
    expected = [
        [f"`[{section}] {name}`", key.default, key.meaning]
        for section, keys in config_keys.KEYS.items()
        for name, key in keys.items()
    ]
    assert rows("configuration.md") == expected


REFERENCE = """{
  "network": {"types": ["tcp4", "unix"], "tcp4": {"address": "127.0.0.1", "port": "2223"},
              "unix": {"address": "u.sock"}, "tcp6": {"address": "::1", "port": "2224"}},
  "handlers": {"availableTypes": ["chat", "news"], "typeMap": {
      "chat": {"handlerBinary": "chat.sh", "unixDomainSocketPath": "chat.sock"},
      "news": {"handlerBinary": "gone", "unixDomainSocketPath": "news.sock"},
      "spare": {"handlerBinary": "", "unixDomainSocketPath": "spare.sock"}}},
  "database": {"type": "redis", "redis": {"address": "127.0.0.1", "port": "6379"}},
  "admin": {"info": "ask Tim"}
}"""


def besterd_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.conf"
    path.write_text(text)
    return path


def test_server_conf_of_besterd(tmp_path: Path) -> None:
    program = tmp_path / "chat.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    config = besterd.load(besterd_file(tmp_path, REFERENCE))
    assert (config.native.tcp4, config.native.tcp6) == (HostPort("127.0.0.1", 2223), None)
    assert config.native.unix == tmp_path / "u.sock"
    chat = tmp_path / "chat.sock"
    assert config.handlers == (
        HandlerConfig("chat", ("chat",), socket=chat, program=(str(program), str(chat))),
        HandlerConfig("news", ("news",), socket=tmp_path / "news.sock"),
    )
    assert config.store == defaults(tmp_path).store
    assert config.admin_info == "ask Tim"
    assert config.informer == tmp_path / "bInformer"
    expected = "\n".join(config.notices)
    assert "database is not read" in expected
    assert "typeMap.spare" in expected
    assert "gone is no program" in expected
    assert all(notice.isprintable() for notice in config.notices)
    assert (config.accept, config.auth, config.servers) == ("open", "accounts", {})
    assert "any server may send messages here, and handlers may send to any host:port" in expected
    assert '"federation": {"accept": "listed"}' in expected


BESIDE = """{
  "network": {"unix": {"address": "u.sock"}},
  "bester": {
    "server": {"name": "s1.example"},
    "native": {"max_frame": 4096, "max_connections_per_user": 3},
    "accounts": {"auth": "open"},
    "servers": {"g": {"native": "g.example:2223", "accept_types": ["english"]}},
    "store": {"ttl_s": 60}%s
  }
}"""


def test_bester_object_holds_keys_that_besterd_lacks(tmp_path: Path) -> None:
    config = besterd.load(besterd_file(tmp_path, BESIDE % ""))
    assert (config.server.name, config.server.data_dir) == ("s1.example", tmp_path / "bester-data")
    assert config.fabric == defaults(tmp_path).fabric
    native = config.native
    assert (native.unix, native.tcp4) == (tmp_path / "u.sock", None)
    assert (native.max_frame, native.max_connections_per_user, native.max_connections) == (4096, 3, 20_000)
    assert (config.auth, config.store.bounds.ttl_s, config.handlers) == ("open", 60.0, ())
    assert config.servers == {
        "g": PeerConfig("g", native=HostPort("g.example", 2223), accept_types=frozenset({"english"}))
    }
    assert config.informer == tmp_path / "bInformer"
    assert config.accept == "open"
    assert ["any server" in notice for notice in config.notices] == [True]


@pytest.mark.parametrize("accept", ["listed", "none", "open"])
def test_explicit_accept_gives_no_notice(tmp_path: Path, accept: str) -> None:
    config = besterd.load(besterd_file(tmp_path, BESIDE % f', "federation": {{"accept": "{accept}"}}'))
    assert config.accept == accept
    assert not any("any server" in notice for notice in config.notices)


def test_unread_key_gives_a_notice(tmp_path: Path) -> None:
    text = '{"network": {"unix": {"address": "u"}}, "bestr": {}, "log": "x"}'
    expected = "\n".join(besterd.load(besterd_file(tmp_path, text)).notices)
    assert "bestr is not read; did you mean bester?" in expected
    assert "log is not read" in expected


UNIX = '{"network": {"unix": {"address": "u"}}, "bester": '


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", "the file: is missing or no object"),
        ("[" * 100000, "is not JSON"),
        ('{"network": {"types": []}}', "names no listener"),
        ('{"network": {"types": ["tcp5"]}}', "'tcp5' is not one of tcp4, tcp6, unix"),
        ('{"network": {"types": ["tcp4"]}}', "network.tcp4: is missing"),
        ('{"network": {"tcp4": {"address": "127.0.0.1", "port": "x"}}}', "the port is a number"),
        ('{"network": {"tcp4": {"address": "0.0.0.0", "port": "1"}}}', 'or add "insecure": true to network'),
        ('{"network": {"unix": {"address": "' + "x" * 200 + '"}}}', "107 at most"),
        ('{"network": {"unix": {"address": "u"}}, "handlers": {"availableTypes": ["a"]}}', "typeMap.a: is missing"),
        (
            '{"network": {"unix": {"address": "u"}}, "handlers": {"typeMap": {"a": {}}}}',
            "unixDomainSocketPath: is missing",
        ),
        ('{"network": {"unix": {"address": "u"}}, "handlers": {"typeMap": {"dummy": {}}}}', "'dummy' is reserved"),
        (UNIX + "3}", "bester: is missing or no object"),
        (UNIX + '{"natve": {}}}', "bester.natve: unknown section; did you mean native?"),
        (UNIX + '{"native": {"max_frme": 1}}}', "bester.native.max_frme: unknown key; did you mean max_frame?"),
        (UNIX + '{"native": {"max_frame": "1"}}}', "bester.native.max_frame: is a whole number from 1024"),
        (
            UNIX + '{"native": {"tcp4": "127.0.0.1:1"}}}',
            "bester.native.tcp4: does not belong here; listeners stand in network",
        ),
        (
            UNIX + '{"native": {"insecure": true}}}',
            'bester.native.insecure: does not belong here; write "insecure": true',
        ),
        (
            UNIX + '{"handlers": {}}}',
            "bester.handlers: does not belong here; handlers are declared in handlers.typeMap",
        ),
        (UNIX + '{"server": {"data_dir": "x"}}}', "bester.server.data_dir: does not belong here; the other commands"),
        (
            UNIX + '{"fabric": {}}}',
            "bester.fabric: does not belong here; the other commands look for bester-data/fabric.sock",
        ),
        (UNIX + '{"store": {"url": "memory:"}}}', "bester.store.url: does not belong here"),
        (UNIX + '{"informer": 3}}', "bester.informer: does not belong here; the informer is bInformer"),
        (UNIX + '{"server": {"name": null}}}', 'bester.server.name: is text; write "name": "…"'),
        (UNIX + '{"server": []}}', "bester.server: is an object; write { … }"),
        (UNIX + '{"federation": "open"}}', "bester.federation: is an object; write { … }"),
        (
            UNIX + '{"federation": {"accept": "all"}}}',
            "bester.federation.accept: 'all' is not one of listed, open, none",
        ),
        (UNIX + '{"servers": {"g": {}}}}', 'bester.servers.g: needs fabric = "tcp://…" or native = "host:port"'),
    ],
)
def test_mistakes_in_server_conf(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        besterd.load(besterd_file(tmp_path, text))
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()
