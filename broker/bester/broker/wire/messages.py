"""Messages of BFP/1 as frozen values: one class an operation, in one table.

The fields of a message stand in wire order. Bodies are `bytes` of JSON text and are never interpreted. The codec checks
the types of fields by the table `OPERATIONS`; a message made by the program is trusted.

A new operation also needs its role in `policy.MAY_SEND`, its function in `Router` (or at its receiver),
`readers._INSIDE` where a field is a list or a map, and `unsendable` where somebody waits for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bester.broker.wire.records import record

VERSION = 1
HEARTBEAT_MS = 2000
SILENT_HEARTBEATS = 3
"""Heartbeats without any message (or the peer's own lease) after which a peer counts as dead."""
REQUEST_MS = 30_000
"""Default time of a handler for one message, without a configured one for the type or a lease."""
MAX_BATCH = 1024
BATCH_BYTES = 1024 * 1024
"""Size of bodies at which a batch is closed; a batch whose frame 0 exceeds twice as much is halved. So no message
delays a link, and frame 0 stays below the limit of receivers."""
INLINE_BYTES = 16 * 1024
"""Largest inlined body; a larger one is attached, as inlining a large body costs more than twice as much."""
MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_FRAME_BYTES = 4 * MAX_BODY_BYTES
"""Longest frame; ZeroMQ drops the peer that sends a longer one. Bodies between MAX_BODY_BYTES and this are refused by a
report."""
MAX_TOKEN = 2**53 - 1
MAX_FRAMES = 16_384
"""Frames of one ZeroMQ message: more than the bodies of a reply with as many commands as it may have targets. A message
of a million tiny frames would stop the loop of its receiver for a second."""
HOP_LIMIT = 16
MAX_RESULTS = 1000

MAX_TARGETS = 10_000
"""Targets of one reply: as many as a bridge is made to hold users, and few enough to be carried out in one turn."""

MAX_REPLY_BYTES = MAX_FRAME_BYTES
"""Bodies of all commands of one reply, each counted as often as it is named: as much as fits into the reply itself. The
commands are carried out in one turn, and some thousands of them may name one attached body."""

ROLES = ("handler", "bridge", "server", "operator")
COMMANDS = ("sendClients", "sendServers", "sendHandler")
MAX_USER = 128
"""Characters of a user's name."""
MAX_NAME = 128
"""Characters of the name that a party gives itself."""
MAX_LEASE_MS = 600_000
"""Longest time for which a handler may ask to be silent: a message takes no longer."""
MAX_CREDIT = 65_536
"""Requests that one handler may hold at once; more only move the queue away from where others could serve it."""
MAX_TYPE = 128
"""Characters of a message type. No handler can serve a longer type, so that the answer is known at once."""
MAX_ID = 512
"""Characters of an id from a server or a handler: twice the longest id, with its path, of this server."""
MAX_DEDUP = 64
"""Characters of a client's dedup key: a UUID and a number; the server remembers each key for a while."""
MAX_TTL_S = 30 * 24 * 3600.0
"""Longest time to live that a sender may ask for: after a month no user needs a message."""

Meta = dict[str, Any]


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
    """Sign of life. `options` between broker and bridge: the bridge's credit, and what it has unreported; between
    broker and a handler of several brokers: `exclusive`, `paused` and `unbegun`."""

    options: Meta | None = None


class Goodbye(NamedTuple):
    reason: str | None = None


class Error(NamedTuple):
    """Refusal of a message; `op` and `token` are those of the refused message, or None."""

    code: str
    text: str
    op: int | None = None
    token: int | None = None


class Command(NamedTuple):
    """Command of a reply; `type` is the type under which another server gets a sendServers message."""

    command: str
    targets: list[str]
    body: bytes
    type: str | None = None


@record(10)
class Request(NamedTuple):
    token: int
    type: str
    body: bytes
    user: str | None
    meta: Meta


class Reply(NamedTuple):
    """Answer to a Request. `status`: DONE, FAILED (`note` is for the log) or REFUSED (`note` is for the sender).

    `code` refines a status other than DONE, see REPLY_CODES.
    """

    token: int
    status: int
    commands: list[Command]
    note: str | None = None
    code: str | None = None


DONE, FAILED, REFUSED = 0, 1, 2
"""Statuses of a Reply; any other counts as FAILED."""
REPLY_CODES = {
    (REFUSED, "schema"): "schema",
    (FAILED, "bad-reply"): "bad-reply",
    (FAILED, "timeout"): "timeout",
}
"""Reason by status and code of a Reply, where the reason differs from that of the status."""


def reply_code(status: int, code: str | None) -> str:
    """Return the reason that a Reply of this status (not DONE) gives its request."""
    usual = "refused" if status == REFUSED else "handler-failed"
    return usual if code is None else REPLY_CODES.get((status, code), usual)


class Emit(NamedTuple):
    token: int
    type: str
    commands: list[Command]
    meta: Meta = {}


class Outcome(NamedTuple):
    """Answer to an Emit; `note` is a handler's comment on `reason`, as in a Report."""

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
    """Request for a session, which is a delivery target after a good LoggedIn. `address` is the host of the other end,
    empty for a Unix socket."""

    session: int
    user: str
    password: str
    address: str


class LoggedIn(NamedTuple):
    """Answer to a Login. `retry_ms`: time that the client has to wait, with reason `try-later`. `account` tells the
    account from an earlier or later one of the name; the bridge returns it with each Open."""

    session: int
    status: int
    reason: str | None = None
    retry_ms: int | None = None
    account: str | None = None


class Open(NamedTuple):
    """Announcement of a session that logged in earlier, after a bridge has repeated its HELLO. `account` is that of its
    LoggedIn."""

    session: int
    user: str
    account: str | None = None


class Close(NamedTuple):
    """From a bridge: the session has ended. From the broker: end the session, as its account was removed."""

    session: int


@record(24)
class Submit(NamedTuple):
    """Message of a client (`session` is set, and names the user) or of a native server (`session` None).

    Optional keys of meta: `attempt` (2 and up: submitted again by the bridge, without a report so far). From a client:
    `dedup`, `ttl_s`, `outcome` (true: push later outcomes), `resent` (true: sent by the client before),
    `traceparent`. From a server: `scope` = "server", `address` (host of the other end) and the claims of its header:
    `server`, `id`, `root`, `origin`, `path`, `ttl_s`, `lane`, `again`, `traceparent`.
    """

    token: int
    session: int | None
    type: str
    body: bytes
    meta: Meta = {}


class Report(NamedTuple):
    """Report on a Submit. `status` 0 is good; `recipients` is empty if every outcome is `delivered`.

    `note` refines `reason` for the sender: the text of a handler that refused the message.
    """

    token: int
    status: int
    reason: str | None
    message: str | None
    recipients: dict[str, str]
    note: str | None = None


@record(26)
class Deliver(NamedTuple):
    """Results of one command for users of one bridge.

    `targets` is a list of `[t, session, session, …]`: target number t of the command, with the result id `ID.t`, goes
    to these sessions. `token`, if set, is that of a Submit on this link which this delivery alone completes: when every
    target is written the bridge itself reports `good`, with `meta.message` as the id.
    """

    serial: int
    id: str
    type: str
    body: bytes
    targets: list[list[int]]
    token: int | None = None
    meta: Meta = {}


@record(27)
class Confirm(NamedTuple):
    """Confirmation of ended deliveries: all serials up to `upto` and those in `done`.

    `failed` lists `[serial, t, reason]` for each target whose bytes were written to none of its sessions (`unconfirmed`
    if written to one that is gone). `reports` counts the REPORTs received on this link, which the broker need not
    remember any more.
    """

    upto: int
    done: list[int] = []
    failed: list[list[Any]] = []
    reports: int = 0


class Relay(NamedTuple):
    """Message from one server to another. `token` rises on the link; meta is that of a Request, with `ttl_s`, `lane`
    and `again` (true: sent before, and perhaps received).

    `lane` is `[epoch, number, floor]`: numbers rise in the lane (the sender's messages of this type) while the epoch
    stays; all numbers below `floor` are settled and never sent again.
    """

    token: int
    type: str
    body: bytes
    meta: Meta


class Relayed(NamedTuple):
    """Outcome of a Relay at the other server: the worst of its recipients there.

    meta: `queued` (number of later outcomes, if not one), `carried` (true: commands of a handler were carried out, so
    that a retry would repeat them), `note` (the text of a handler that refused the message).
    """

    token: int
    outcome: str
    meta: Meta = {}


class Trace(NamedTuple):
    """Question of a server that sent messages of this root, about their steps. meta: `wait_ms`, the time within which
    the answer is of use, and `hops`, the number of servers along which the receiver may ask further."""

    token: int
    root: str
    meta: Meta = {}


class Traced(NamedTuple):
    """Answer to a Trace: steps as maps with `at_ms`, `id`, `what`, `where` and perhaps `since_ms`.

    meta: `why`, the code of a refusal; `servers`, a map of the servers that were asked further and have told nothing
    to the code of the reason."""

    token: int
    steps: list[Any]
    meta: Meta = {}


class Forward(NamedTuple):
    """Request to a bridge to forward a message to a native server at `address`. meta is that of a Relay, with `wait_s`:
    the seconds that the bridge may wait for the server's report."""

    token: int
    address: str
    type: str
    body: bytes
    meta: Meta


class Forwarded(NamedTuple):
    """Outcome of a Forward; meta is that of a Relayed, as far as the server reports.

    `sent` means that the server has read the message and closed in peace without a report. meta: `reported` (true: the
    server itself reported the outcome), `unsent` (true: no connection was made, so that the message was not received).
    """

    token: int
    outcome: str
    meta: Meta = {}


Message = (
    Hello | Welcome | Heartbeat | Goodbye | Error | Request | Reply | Emit | Outcome | Ask | Answer
    | Login | LoggedIn | Open | Close | Submit | Report | Deliver | Confirm
    | Relay | Relayed | Forward | Forwarded | Trace | Traced
)  # fmt: skip


class Malformed(NamedTuple):
    """Result of decoding an unreadable message, with the fields of the Error that answers it."""

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
MAP_OR_NIL: Kinds = frozenset({dict, type(None)})
LIST: Kinds = frozenset({list})
ANY = None


class Operation(NamedTuple):
    """Layout of one op on the wire: its class, the kinds of its fields, and the number of required fields.

    `body` is the index of a body field, `commands` that of a command list. `rare`: the last field is usually
    None and then left out, so that the usual message stays short. A value of another kind in its position is ignored,
    as are fields behind the last.
    """

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
    Operation(3, Heartbeat, (MAP_OR_NIL,), 0, rare=True),
    Operation(4, Goodbye, (TEXT_OR_NIL,), 0),
    Operation(5, Error, (TEXT, TEXT, INT_OR_NIL, INT_OR_NIL), 2),
    Operation(10, Request, (INT, TEXT, BODY, TEXT_OR_NIL, MAP), 5, body=2),
    Operation(11, Reply, (INT, INT, LIST, TEXT_OR_NIL, TEXT_OR_NIL), 3, commands=2, rare=True),
    Operation(12, Emit, (INT, TEXT, LIST, MAP), 3, commands=2),
    Operation(13, Outcome, (INT, INT, MAP, TEXT_OR_NIL, TEXT_OR_NIL), 3, rare=True),
    Operation(14, Ask, (INT, TEXT, ANY), 2),
    Operation(15, Answer, (INT, INT, ANY), 2),
    Operation(20, Login, (INT, TEXT, TEXT, TEXT), 4),
    Operation(21, LoggedIn, (INT, INT, TEXT_OR_NIL, INT_OR_NIL, TEXT_OR_NIL), 2, rare=True),
    Operation(22, Open, (INT, TEXT, TEXT_OR_NIL), 2, rare=True),
    Operation(23, Close, (INT,), 1),
    Operation(24, Submit, (INT, INT_OR_NIL, TEXT, BODY, MAP), 4, body=3),
    Operation(25, Report, (INT, INT, TEXT_OR_NIL, TEXT_OR_NIL, MAP, TEXT_OR_NIL), 5, rare=True),
    Operation(26, Deliver, (INT, TEXT, TEXT, BODY, LIST, INT_OR_NIL, MAP), 5, body=3),
    Operation(27, Confirm, (INT, LIST, LIST, INT), 1),
    Operation(30, Relay, (INT, TEXT, BODY, MAP), 4, body=2),
    Operation(31, Relayed, (INT, TEXT, MAP), 2),
    Operation(32, Forward, (INT, TEXT, TEXT, BODY, MAP), 5, body=3),
    Operation(33, Forwarded, (INT, TEXT, MAP), 2),
    Operation(34, Trace, (INT, TEXT, MAP), 2),
    Operation(35, Traced, (INT, LIST, MAP), 2),
)

OP_OF: dict[type[Any], int] = {row.message: row.op for row in OPERATIONS}
