"""Every key of `bester.toml`, with default and meaning as the reference shows them, and remedies for unknown keys.

A test compares the reference in docs/ with `KEYS`. The values are read in config_file.py and config_entries.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


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
        "max_connections": Key("20000", "connections at once; a quarter, 64 at least and 5000 at most, before a login"),
        "max_connections_per_user": Key("1000", "connections of one user at once"),
        "max_connections_per_address": Key("1000", "connections from one address (IPv6: /64) at once, except loopback"),
        "messages_per_s": Key("0", "messages a second of one user, twice as many at once; 0: no limit"),
        "websocket": Key("none", "a listener for browsers, as HOST:PORT; with [native.tls] it speaks TLS (wss)"),
        "websocket_origins": Key(
            "[]", 'pages that may connect beside those of this host, as ["https://chat.example"]; "*" is every page'
        ),
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
        "connect": Key(
            "the first ipc:// of `listen`, else its first",
            "where bridges, handlers and operators elsewhere find the broker",
        ),
        "key": Key(
            '"DATA_DIR/server.key"', "the file of this program's own secret key; a server makes one at its first start"
        ),
        "server_key": Key(
            "none", "the public key of the broker at `connect`, for bridges, handlers and operators elsewhere"
        ),
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
        "token": Key(
            "none", "the file of the secret that lets in, mode 0600; beyond loopback, and for acts, it or client_ca"
        ),
        "cert": Key("none", "the file of the page's certificate, in PEM; with it the page is https://"),
        "key": Key("none", "the file of the private key of `cert`, which nobody else may read"),
        "client_ca": Key(
            "none",
            "the file of the authorities whose certificates, or of the certificates that, let in as the token does",
        ),
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
