"""The native protocol's JSON, written: the frames of reports, answers, deliveries and messages to other servers.

`data` is never written anew: its text is joined into the frame, byte by byte, and so is a client's `id`.
"""

from __future__ import annotations

import msgspec

from bester.bridge.frames import frame
from bester.bridge.native import AUTH_ID, CLAIMS
from bester.broker.wire.messages import Meta

GOOD = b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":'
_BAD = b'{"header":{"messageType":"statusReport","status":"bad"},"payload":{"id":'
RECEIVED = b'{"header":{"messageType":"receivedMessage","id":'
SHARED_BYTES = 4096
"""Tails above this size are shared by the targets of a delivery: joined, n targets of a large message would be n large
messages."""
_text = msgspec.json.Encoder().encode


def report(
    id_: bytes,
    status: int,
    reason: str | None = None,
    message: str | None = None,
    recipients: dict[str, str] | None = None,
    note: str | None = None,
) -> bytes:
    """Return a status report's frame; `id_` is JSON text, `message` the server's own id of the message, `note` a text
    beside the reason."""
    parts = [_BAD if status else GOOD, id_]
    if message is not None:
        parts += (b',"message":', _text(message))
    if status:
        parts += (b',"reason":', _text(reason or "handler-failed"))
        if note is not None:
            parts += (b',"note":', _text(note))
    if recipients:
        parts += (b',"recipients":', _text(recipients))
    parts.append(b"}}")
    return frame(b"".join(parts))


def logged_in(max_frame: int) -> bytes:
    """Return the frame that accepts a login; `max_frame`: bytes of the longest frame taken from this client."""
    return frame(b'%b%b,"max_frame":%d}}' % (GOOD, AUTH_ID, max_frame))


def refused(reason: str, retry_ms: int | None = None) -> bytes:
    """Return the frame that refuses a login; `retry_ms`, rounded up to whole seconds: time before the next try."""
    retry = b"" if retry_ms is None else b',"retry_s":%d' % max(1, -(-retry_ms // 1000))
    return frame(b"".join((_BAD, AUTH_ID, b',"reason":', _text(reason), retry, b"}}")))


def pong(id_: bytes) -> bytes:
    """Return the frame that answers a `dummy`."""
    return frame(b'{"header":{"status":"0"},"payload":{"data":null,"id":%b,"type":"dummy"}}' % id_)


def done(id_: bytes) -> bytes:
    """Return the frame that answers a command to the server itself which was carried out."""
    return frame(b'{"header":{"status":"0"},"payload":{"data":null,"id":%b,"type":"builtin"}}' % id_)


def outcomes(id_: bytes, message: str, recipients: dict[str, str] | None) -> bytes:
    """Return the frame that answers a question about a message; None: there is no such message that the client may ask
    about."""
    if recipients is None:
        return frame(b'{"header":{"status":"1"},"payload":{"data":null,"id":%b,"type":"builtin"}}' % id_)
    data = _text({"message": message, "recipients": recipients})
    return frame(b'{"header":{"status":"0"},"payload":{"data":%b,"id":%b,"type":"builtin"}}' % (data, id_))


def around_body(type_: str, meta: Meta) -> tuple[bytes, bytes]:
    """Return the parts before the body, from the end of the id on, and behind the body in the frames of deliveries."""
    origin = meta.get("origin")
    facts = b',"origin":' + _text(origin) if type(origin) is str else b""
    if meta.get("redelivered") is True:
        facts += b',"redelivered":true'
    return b"".join((b'"', facts, b'},"payload":{"data":')), b"".join((b',"type":', _text(type_), b"}}"))


def envelope(id_: str, type_: str, body: bytes, meta: Meta) -> tuple[bytes, bytes]:
    """Return the parts before and behind the number of the target (and its dot) in the frames of one delivery."""
    before, behind = around_body(type_, meta)
    return RECEIVED + _text(id_)[:-1], b"".join((before, body, behind))


def delivered(head: bytes, target: int, tail: bytes) -> tuple[bytes, ...]:
    """Return the receivedMessage frame for target number `target`, in pieces, from the parts of `envelope`."""
    number = b".%d" % target
    length = (len(head) + len(number) + len(tail)).to_bytes(4, "little")
    if len(tail) > SHARED_BYTES:
        return b"".join((length, head, number)), tail
    return (b"".join((length, head, number, tail)),)


def to_server(token: int, type_: str, body: bytes, meta: Meta) -> bytes:
    """Return the one frame that hands a message to another server; the frame always has an id."""
    header: Meta = {"scope": "server"}
    header.update((key, meta[key]) for key in CLAIMS if meta.get(key) is not None)
    id_ = meta.get("id")
    text = _text(id_ if type(id_) is str else str(token))
    return frame(b'{"header":%b,"payload":{"data":%b,"type":%b,"id":%b}}' % (_text(header), body, _text(type_), text))
