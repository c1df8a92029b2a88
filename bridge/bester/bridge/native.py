"""The native protocol's JSON: frame bodies in, values out; and the frames the bridge writes.

`data` is never decoded and never written anew: it is cut out of a frame as it stands, and frames are put together
around it byte by byte. Nothing here raises on the wire's account. The same goes for a client's `id`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from bester.bridge.frames import frame
from bester.broker.wire.codes import CODES
from bester.broker.wire.json_text import DEPTH_LIMIT, is_utf8, too_deep
from bester.broker.wire.json_text import fault as json_fault
from bester.broker.wire.messages import Meta

NULL = b"null"
_BAD_JSON = (msgspec.DecodeError, ValueError, RecursionError)
_text = msgspec.json.Encoder().encode
_new = tuple.__new__  # in half the time of the class itself


class Sent(NamedTuple):
    """A message as its sender wrote it: `data` is JSON text, `id` a JSON string or `null` as it stood in the frame."""

    type: str
    data: bytes
    id: bytes


class Fault(NamedTuple):
    """What is wrong with a frame. `fatal`: the peer does not speak the protocol, the connection ends."""

    id: bytes
    fatal: bool
    text: str
    reason: str = "malformed"


class Client(NamedTuple):
    """A first frame that wants to log in; `message`: it also carries a message, to be read as a later frame."""

    user: str
    password: str
    message: bool


class Server(NamedTuple):
    """A first frame of another server: one message, and what its header claims."""

    sent: Sent
    claims: Meta


# --- reading ---------------------------------------------------------------------------------------------------


class _Payload(msgspec.Struct, gc=False):
    type: str
    data: Raw
    id: Raw = Raw(NULL)


class _Later(msgspec.Struct, gc=False):
    payload: _Payload


class _IdPayload(msgspec.Struct, gc=False):
    id: Raw = Raw(NULL)


class _IdOnly(msgspec.Struct, gc=False):
    payload: _IdPayload


class _First(msgspec.Struct, gc=False):
    header: Raw = Raw(NULL)
    payload: Raw = Raw(NULL)


class _Login(msgspec.Struct, gc=False):
    username: str
    password: str


_later = msgspec.json.Decoder(_Later).decode
_id_only = msgspec.json.Decoder(_IdOnly).decode
_first = msgspec.json.Decoder(_First).decode
_login = msgspec.json.Decoder(_Login).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_skip = msgspec.json.Decoder(Raw).decode
_string = msgspec.json.Decoder(str).decode


def later(body: bytes) -> Sent | Fault:
    """Read a frame behind the first one."""
    try:
        payload = _later(body).payload
        # What was decoded is JSON; the two things the decoder lets pass are looked at after it, on JSON alone.
        if body.count(b"{") + body.count(b"[") > DEPTH_LIMIT and too_deep(body):
            return _unreadable(body)
        if not body.isascii() and not is_utf8(body):
            return _unreadable(body)
        id_ = bytes(payload.id)
        if id_[0] != 0x22 and id_ != NULL:
            return Fault(NULL, False, "payload.id is not a string")
        return _new(Sent, (payload.type, bytes(payload.data), id_))
    except _BAD_JSON:
        return _unreadable(body)


def _unreadable(body: bytes) -> Fault:
    """Tell what ends the connection (not a JSON object) from what only ends the message."""
    try:
        _skip(body)
    except _BAD_JSON as error:
        return Fault(NULL, True, f"not JSON: {error}")
    wrong = json_fault(body)
    if wrong is not None:
        return Fault(NULL, True, wrong)
    if body.lstrip()[:1] != b"{":
        return Fault(NULL, True, "not a JSON object")
    try:
        id_ = bytes(_id_only(body).payload.id)
    except _BAD_JSON:
        id_ = NULL
    return Fault(id_ if id_[0] == 0x22 else NULL, False, "a payload holds a type (a string), data, and an id")


def first(body: bytes) -> Client | Server | Fault:
    """Read the first frame of a connection: who is this?"""
    try:
        top = _first(body)
    except _BAD_JSON:
        return _unreadable(body)._replace(fatal=True)
    wrong = json_fault(body)
    if wrong is not None:
        return Fault(NULL, True, wrong)
    header = _object(top.header)
    scope = None if header is None else _str(header.get("scope"))
    if header is None or scope not in ("client", "server"):
        return Fault(AUTH_ID, True, 'header.scope is "client" or "server"')
    if scope == "server":
        sent = later(body)
        return sent._replace(fatal=True) if isinstance(sent, Fault) else Server(sent, _claims(header))
    try:
        login = _login(header["authentication"])
    except (KeyError, *_BAD_JSON):
        login = _Login("", "")
    if not login.username or not login.password:
        return Fault(AUTH_ID, True, "no user name and password", "authentication-failed")
    payload = _object(top.payload) or {}
    type_, id_ = payload.get("type"), payload.get("id")
    says_something = type_ is not None and bytes(type_) != NULL and _str(type_) != "dummy"
    return Client(login.username, login.password, says_something and id_ is not None and bytes(id_) != NULL)


def _object(raw: Raw) -> dict[str, Raw] | None:
    try:
        return _fields(raw)
    except _BAD_JSON:
        return None


def _str(raw: Raw | None) -> str | None:
    try:
        return None if raw is None else _string(raw)
    except _BAD_JSON:
        return None


_CLAIMS: dict[str, Any] = {
    "server": str,
    "id": str,
    "root": str,
    "origin": str,
    "path": list[str],
    "ttl_s": float,
}


def _claims(header: dict[str, Raw]) -> Meta:
    """Return what a server says of its message where it is of the right type; none of it is believed here."""
    claims: Meta = {}
    for key, kind in _CLAIMS.items():
        if key in header:
            try:
                claims[key] = msgspec.json.decode(header[key], type=kind)
            except _BAD_JSON:
                continue
    return claims


def builtin_command(data: bytes) -> str | None:
    """Return `command.type` of a builtin message's data."""
    command = (_object(Raw(data)) or {}).get("command")
    fields = None if command is None else _object(command)
    return None if fields is None else _str(fields.get("type"))


class _ReportHeader(msgspec.Struct, gc=False):
    status: str
    messageType: str  # noqa: N815 (the protocol's spelling)


class _ReportPayload(msgspec.Struct, gc=False):
    reason: str | None = None


class _Report(msgspec.Struct, gc=False):
    header: _ReportHeader
    payload: Raw = Raw(NULL)


_report = msgspec.json.Decoder(_Report).decode
_report_payload = msgspec.json.Decoder(_ReportPayload).decode


def outcome(body: bytes) -> str | None:
    """Return what another server's frame says became of our message; None where it is no status report."""
    try:
        report = _report(body)
    except _BAD_JSON:
        return None
    if report.header.messageType != "statusReport":
        return None
    if report.header.status == "good":
        return "delivered"
    try:
        reason = _report_payload(report.payload).reason
    except _BAD_JSON:
        reason = None
    return f"failed:{reason if reason in CODES else 'handler-failed'}"


# --- writing ---------------------------------------------------------------------------------------------------

AUTH_ID = b'"auth_special"'
_GOOD = b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":'
_BAD = b'{"header":{"messageType":"statusReport","status":"bad"},"payload":{"id":'


def report(
    id_: bytes,
    status: int,
    reason: str | None = None,
    message: str | None = None,
    recipients: dict[str, str] | None = None,
) -> bytes:
    """Return a status report's frame; `id_` is JSON text, `message` the server's own id of the message."""
    parts = [_BAD if status else _GOOD, id_]
    if message is not None:
        parts += (b',"message":', _text(message))
    if status:
        parts += (b',"reason":', _text(reason or "handler-failed"))
    if recipients:
        parts += (b',"recipients":', _text(recipients))
    parts.append(b"}}")
    return frame(b"".join(parts))


LOGGED_IN = report(AUTH_ID, 0)


def pong(id_: bytes) -> bytes:
    """Return the frame that answers a `dummy`."""
    return frame(b'{"header":{"status":"0"},"payload":{"data":null,"id":%b,"type":"dummy"}}' % id_)


def envelope(id_: str, type_: str, body: bytes, meta: Meta) -> tuple[bytes, bytes]:
    """Return what stands before and behind the number of the target (and its dot) in the frames of one delivery."""
    origin = meta.get("origin")
    said = b',"origin":' + _text(origin) if type(origin) is str else b""
    if meta.get("redelivered") is True:
        said += b',"redelivered":true'
    head = b'{"header":{"messageType":"receivedMessage","id":' + _text(id_)[:-1]
    return head, b"".join((b'"', said, b'},"payload":{"data":', body, b',"type":', _text(type_), b"}}"))


SHARED_BYTES = 4096
"""The targets of a delivery share a tail above this: joined, n targets of a large message would be n large messages."""


def delivered(head: bytes, target: int, tail: bytes) -> tuple[bytes, ...]:
    """Return the receivedMessage frame for target number `target`, in pieces, from the parts of `envelope`."""
    number = b".%d" % target
    length = (len(head) + len(number) + len(tail)).to_bytes(4, "little")
    if len(tail) > SHARED_BYTES:
        return b"".join((length, head, number)), tail
    return (b"".join((length, head, number, tail)),)


def to_server(token: int, type_: str, body: bytes, meta: Meta) -> bytes:
    """Return the one frame that hands a message to another server; there is always an id in it."""
    header: Meta = {"scope": "server"}
    header.update((key, meta[key]) for key in _CLAIMS if meta.get(key) is not None)
    id_ = meta.get("id")
    text = _text(id_ if type(id_) is str else str(token))
    return frame(b'{"header":%b,"payload":{"data":%b,"type":%b,"id":%b}}' % (_text(header), body, _text(type_), text))
