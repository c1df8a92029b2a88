"""The messages of BFP/1 as frozen values: one class an operation, in one table.

A message's fields stand in wire order. Bodies are `bytes` of JSON text and are
never interpreted here. Field types are checked by the codec from the table
`OPERATIONS`; a message built in the program is trusted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

VERSION = 1
HEARTBEAT_MS = 2000
SILENT_HEARTBEATS = 3
"""A party unheard for so many heartbeats (or its own lease) is dead."""
REQUEST_MS = 30_000
"""How long a handler may take over one message, where neither its type's configuration nor its lease says otherwise."""
MAX_BATCH = 1024
INLINE_BYTES = 16 * 1024
"""Bodies above this travel as attachments; inlined, a large body costs more than twice as much."""
MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_FRAME_BYTES = 4 * MAX_BODY_BYTES
"""ZeroMQ drops the peer that sends a longer frame. Bodies above MAX_BODY_BYTES but below this are refused politely."""
MAX_TOKEN = 2**53 - 1
HOP_LIMIT = 16
MAX_RESULTS = 1000

MAX_TARGETS = 10_000
"""Targets of one reply; as many as a bridge is made to hold users, and few enough to be carried out in one turn."""

ROLES = ("handler", "bridge", "server", "operator")
COMMANDS = ("sendClients", "sendServers", "sendHandler")
MAX_USER = 128
"""Characters of a user's name."""
MAX_TYPE = 128
"""Characters of a message type. No handler can serve a longer one: what the answer is, is known at once."""
MAX_ID = 512
"""Characters of an id that a server or a handler gives a message: twice what the longest path makes of ours."""
MAX_DEDUP = 64
"""Characters of a client's own key: a UUID and a number beside it; the server remembers each for a while."""
MAX_TTL_S = 30 * 24 * 3600.0
"""The longest life a sender may ask for: what is worth nothing to anybody in a month need not be kept that long."""
RESERVED_TYPES = ("dummy", "builtin")
RESERVED_PREFIX = "bester."

Meta = dict[str, Any]


def is_reserved(type_: str) -> bool:
    """Say whether a message type belongs to Bester itself."""
    return type_ in RESERVED_TYPES or type_.startswith(RESERVED_PREFIX)


def spelling_fault(type_: str) -> str | None:
    """Say what is wrong with the spelling of a message type, or None.

    The one rule for whatever names a type that a handler is to serve: the configuration, a HELLO, the command line and
    the environment, a handler's code, a command. What breaks it no list of types could name.
    """
    if 0 < len(type_) <= MAX_TYPE and type_.isprintable() and "," not in type_ and type_ == type_.strip():
        return None
    shown = type_ if len(type_) <= MAX_TYPE else f"{type_[:40]}…"
    return f"{shown!r}: a type is 1 to {MAX_TYPE} printable characters without commas or blanks at its ends"


def type_fault(type_: str) -> str | None:
    """Say why a handler cannot serve a message type of this name, or None."""
    if is_reserved(type_):
        return f"{type_!r} is reserved for Bester itself; choose another type"
    return spelling_fault(type_)


class Hello(NamedTuple):
    version: int
    role: str
    name: str
    options: Meta = {}


class Welcome(NamedTuple):
    version: int
    server: str
    options: Meta = {}


class Heartbeat(NamedTuple):
    pass


class Goodbye(NamedTuple):
    reason: str | None = None


class Error(NamedTuple):
    """`op` and `token` are those of the message that was refused, or None."""

    code: str
    text: str
    op: int | None = None
    token: int | None = None


class Command(NamedTuple):
    """One command of a reply; `type` is the type a remote server gets a sendServers message under."""

    command: str
    targets: list[str]
    body: bytes
    type: str | None = None


class Request(NamedTuple):
    token: int
    type: str
    body: bytes
    user: str | None
    meta: Meta


class Reply(NamedTuple):
    """Answers a Request. `status`: DONE, FAILED (`note` is for the log) or REFUSED (`note` is for the sender).

    `code` says more of a status that is not DONE, see REPLY_CODES.
    """

    token: int
    status: int
    commands: list[Command]
    note: str | None = None
    code: str | None = None


DONE, FAILED, REFUSED = 0, 1, 2
"""The statuses of a Reply; any other counts as FAILED."""
REPLY_CODES = {(REFUSED, "schema"): "schema", (FAILED, "bad-reply"): "bad-reply"}
"""The reason a Reply ends its request with, by status and code, where that is not the usual one of the status."""


def reply_code(status: int, code: str | None) -> str:
    """Return the reason that a Reply of this status (not DONE) ends its request with."""
    usual = "refused" if status == REFUSED else "handler-failed"
    return usual if code is None else REPLY_CODES.get((status, code), usual)


class Emit(NamedTuple):
    token: int
    type: str
    commands: list[Command]
    meta: Meta = {}


class Outcome(NamedTuple):
    """Answers an Emit; `note` is a handler's own word on `reason`, as in a Report."""

    token: int
    status: int
    recipients: dict[str, str]
    reason: str | None = None
    note: str | None = None


class Ask(NamedTuple):
    token: int
    question: str
    argument: Any = None


class Answer(NamedTuple):
    token: int
    status: int
    value: Any = None


class Login(NamedTuple):
    """Asks for a session; it is a delivery target from the LoggedIn that answers well. `address` is the host of the
    other end, empty where it has none (a Unix socket)."""

    session: int
    user: str
    password: str
    address: str


class LoggedIn(NamedTuple):
    """Answers a Login. `retry_ms`: with reason `try-later`, how long the client is to wait."""

    session: int
    status: int
    reason: str | None = None
    retry_ms: int | None = None


class Open(NamedTuple):
    """Announces a session that logged in before (after the bridge has said HELLO again)."""

    session: int
    user: str


class Close(NamedTuple):
    """From a bridge: the session has ended. From the broker: end it (the account was removed)."""

    session: int


class Submit(NamedTuple):
    """A client's message (`session` set: the broker knows whose) or a native server's (`session` None).

    meta, where there is anything to say: `attempt` (2 and up: the bridge submits it again, for it had no report); of a
    client's: `dedup`, `ttl_s`, `outcome` (true: push later outcomes), `resent` (true: the client sent it before); of a
    server's: `scope` = "server", `address` (host of the other end) and the claims of its header: `server`, `id`,
    `root`, `origin`, `path`, `ttl_s`, `lane`, `again`.
    """

    token: int
    session: int | None
    type: str
    body: bytes
    meta: Meta = {}


class Report(NamedTuple):
    """Ends a Submit. `status` 0 is good; `recipients` is empty where every outcome is `delivered`.

    `note` says more of `reason`, for the sender: what a handler said that refused the message.
    """

    token: int
    status: int
    reason: str | None
    message: str | None
    recipients: dict[str, str]
    note: str | None = None


class Deliver(NamedTuple):
    """One command's results for users of one bridge.

    `targets` is a list of `[t, session, session, …]`: target number t of the command, whose result id is `ID.t`,
    goes to these sessions. `token`, where set, is that of a Submit on this link which this delivery alone
    completes: when every target was written the bridge reports `good` itself, with `meta.message` as the id.
    """

    serial: int
    id: str
    type: str
    body: bytes
    targets: list[list[int]]
    token: int | None = None
    meta: Meta = {}


class Confirm(NamedTuple):
    """Deliveries that have ended: all serials up to `upto` and those in `done`; `failed` lists
    `[serial, t, reason]` for each target among them whose bytes left on none of its sessions (`unconfirmed` where
    they may have left on one that is gone). `reports` counts the
    REPORTs that have come on this link: those need not be remembered any more."""

    upto: int
    done: list[int] = []
    failed: list[list[Any]] = []
    reports: int = 0


class Relay(NamedTuple):
    """A message from one server to another; `token` rises on the link, meta as of a Request, and `ttl_s`, `lane` and
    `again` (true: it was sent before, and may have arrived).

    `lane` is `[epoch, number, floor]`: numbers rise in the lane (the sender's messages of this type), as long as the
    epoch stays; all below `floor` are settled and will not come again.
    """

    token: int
    type: str
    body: bytes
    meta: Meta


class Relayed(NamedTuple):
    """What became of a Relay at the far server; `outcome` is the worst of its recipients there.

    meta: `queued` (how many later outcomes will follow, where it is not one), `carried` (true: a handler's commands
    were carried out, so that trying again would do it twice), `note` (what a handler there said that refused it).
    """

    token: int
    outcome: str
    meta: Meta = {}


class Forward(NamedTuple):
    """Asks a bridge to hand a message to a server that speaks the native protocol at `address`. meta as of a Relay, and
    `wait_s`: how many seconds the bridge may wait for the server's report."""

    token: int
    address: str
    type: str
    body: bytes
    meta: Meta


class Forwarded(NamedTuple):
    """What became of a Forward; meta as of a Relayed, as far as the server's report tells.

    `sent` means that the server has read the message and closed in peace without a report. meta: `reported` (true: the
    outcome is the server's own word), `unsent` (true: no connection was made, so that nothing has arrived).
    """

    token: int
    outcome: str
    meta: Meta = {}


Message = (
    Hello | Welcome | Heartbeat | Goodbye | Error | Request | Reply | Emit | Outcome | Ask | Answer
    | Login | LoggedIn | Open | Close | Submit | Report | Deliver | Confirm
    | Relay | Relayed | Forward | Forwarded
)  # fmt: skip


class Malformed(NamedTuple):
    """What the codec makes of a message it cannot read: the Error to answer, were it sent back as one."""

    code: str
    text: str
    op: int | None = None
    token: int | None = None


# --- the table -------------------------------------------------------------------------------------------------

Kinds = frozenset[type[Any]]

INT: Kinds = frozenset({int})
TEXT: Kinds = frozenset({str})
TEXT_OR_NIL: Kinds = frozenset({str, type(None)})
INT_OR_NIL: Kinds = frozenset({int, type(None)})
BODY: Kinds = frozenset({bytes, str, int})
MAP: Kinds = frozenset({dict})
LIST: Kinds = frozenset({list})
ANY = None


class Operation(NamedTuple):
    """How one op looks on the wire: its class, the kinds of its fields, how many of them must be there,
    and where bodies sit (`body`: the index of a body field; `commands`: the index of a command list). `rare`: the last
    field, a text, is seldom there and left out where it is None, so that the usual message is as short as it ever was;
    what else stands in its place is ignored, as are fields behind the last."""

    op: int
    message: type[Any]
    fields: tuple[Kinds | None, ...]
    required: int
    body: int | None = None
    commands: int | None = None
    rare: bool = False


OPERATIONS: tuple[Operation, ...] = (
    Operation(1, Hello, (INT, TEXT, TEXT, MAP), 3),
    Operation(2, Welcome, (INT, TEXT, MAP), 2),
    Operation(3, Heartbeat, (), 0),
    Operation(4, Goodbye, (TEXT_OR_NIL,), 0),
    Operation(5, Error, (TEXT, TEXT, INT_OR_NIL, INT_OR_NIL), 2),
    Operation(10, Request, (INT, TEXT, BODY, TEXT_OR_NIL, MAP), 5, body=2),
    Operation(11, Reply, (INT, INT, LIST, TEXT_OR_NIL, TEXT_OR_NIL), 3, commands=2, rare=True),
    Operation(12, Emit, (INT, TEXT, LIST, MAP), 3, commands=2),
    Operation(13, Outcome, (INT, INT, MAP, TEXT_OR_NIL, TEXT_OR_NIL), 3, rare=True),
    Operation(14, Ask, (INT, TEXT, ANY), 2),
    Operation(15, Answer, (INT, INT, ANY), 2),
    Operation(20, Login, (INT, TEXT, TEXT, TEXT), 4),
    Operation(21, LoggedIn, (INT, INT, TEXT_OR_NIL, INT_OR_NIL), 2),
    Operation(22, Open, (INT, TEXT), 2),
    Operation(23, Close, (INT,), 1),
    Operation(24, Submit, (INT, INT_OR_NIL, TEXT, BODY, MAP), 4, body=3),
    Operation(25, Report, (INT, INT, TEXT_OR_NIL, TEXT_OR_NIL, MAP, TEXT_OR_NIL), 5, rare=True),
    Operation(26, Deliver, (INT, TEXT, TEXT, BODY, LIST, INT_OR_NIL, MAP), 5, body=3),
    Operation(27, Confirm, (INT, LIST, LIST, INT), 1),
    Operation(30, Relay, (INT, TEXT, BODY, MAP), 4, body=2),
    Operation(31, Relayed, (INT, TEXT, MAP), 2),
    Operation(32, Forward, (INT, TEXT, TEXT, BODY, MAP), 5, body=3),
    Operation(33, Forwarded, (INT, TEXT, MAP), 2),
)

OP_OF: dict[type[Any], int] = {row.message: row.op for row in OPERATIONS}
