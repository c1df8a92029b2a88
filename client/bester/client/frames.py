"""Frames of the client's side: values on one side, frame bodies on the other. Pure.

The data of a message is never interpreted and never re-encoded: outgoing data is the JSON text that was given, incoming
data is the JSON text that was sent. No frame of a server makes `parse` raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from bester.broker.wire import json_text
from bester.broker.wire.arguments import HALF, check_flag, check_text, check_wait
from bester.broker.wire.finite import see_finite
from bester.broker.wire.messages import MAX_DEDUP, MAX_TTL_S
from bester.broker.wire.outcomes import OUTCOME_TYPE

T = TypeVar("T")

LONGEST_RETRY_S = 3600.0
"""The longest wait before a login that is believed; a server that names a longer one is faulty."""


class Terms(NamedTuple):
    """Options of one message; see `Client.submit`."""

    dedup: str | None = None
    ttl_s: float | None = None
    outcome: bool = False

    def check(self) -> None:
        """Raise TypeError or ValueError for terms that a server would refuse."""
        if self.dedup is not None:
            check_text("dedup", self.dedup)
        if self.ttl_s is not None:
            check_wait("ttl_s", self.ttl_s)
        check_flag("outcome", self.outcome)
        for name, fault in (("dedup", dedup_fault(self.dedup)), ("ttl_s", ttl_fault(self.ttl_s))):
            if fault is not None:
                raise ValueError(f"{name}: {fault}")


NO_TERMS = Terms()


def dedup_fault(dedup: str | None) -> str | None:
    """Return the fault of a sender's own dedup key, or None."""
    if dedup is None or 0 < len(dedup) <= MAX_DEDUP:
        return None
    return f"must have 1 to {MAX_DEDUP} characters, not {len(dedup)}"


def ttl_fault(ttl_s: float | None) -> str | None:
    """Return the fault of a time to live, or None."""
    if ttl_s is None or 0 < ttl_s <= MAX_TTL_S:
        return None
    return f"must be more than 0 and at most {MAX_TTL_S:.0f} seconds (30 days)"


@dataclass(frozen=True, slots=True)
class Report:
    """Report of the server on one message.

    `good`: every recipient has the message, or will (see `recipients`). `reason`: code of the first failure, where the
    report is bad and the server gives one. `recipients`: name -> `delivered`, `queued`, `sent` or `failed:CODE`; empty
    where all are `delivered`, and with servers that name no outcomes. `message`: the server's own id of the
    message, if the server gives one. `id`: the client's id, as sent. `frame`: the report as received. `note`: text for
    people about the reason: why the handler refused the message (`refused`), or where its data breaks the contract
    (`schema`). `retry_s`: seconds to wait, in a bad answer to a login, if the server names a time.
    """

    good: bool
    id: str | None
    reason: str | None = None
    message: str | None = None
    recipients: dict[str, str] = field(default_factory=dict)
    frame: bytes = field(default=b"", repr=False, compare=False)
    note: str | None = None
    retry_s: float | None = None


class Outcome(NamedTuple):
    """Later outcome of a message that was reported as `queued` for a recipient.

    `message`: the server's own id of the message, as in its report; `recipient`: as the report named the recipient;
    `outcome`: `delivered` or `failed:CODE`.
    """

    message: str
    recipient: str
    outcome: str


class Message:
    """A received message.

    `type`: the type of the handler that sent the message. `raw`: the data, JSON text byte for byte. `data`: the same,
    decoded at the first access. `id`: the server's id, by which a duplicate is known; `origin`: the server where the
    message entered; `redelivered`: the message may have been delivered before; None and False with servers that do not
    send them. `frame`: the whole frame as received.
    """

    __slots__ = ("_data", "_raw", "frame", "id", "origin", "redelivered", "type")

    def __init__(
        self,
        type_: str,
        raw: msgspec.Raw,
        *,
        id_: str | None = None,
        origin: str | None = None,
        redelivered: bool = False,
        frame: bytes = b"",
    ) -> None:
        self.type = type_
        self.id = id_
        self.origin = origin
        self.redelivered = redelivered
        self.frame = frame
        self._raw = raw
        self._data: Any = msgspec.UNSET

    @property
    def raw(self) -> bytes:
        return bytes(self._raw)

    @property
    def data(self) -> Any:
        """The data, decoded. Raises ValueError where Python has no value for the text (`1e400`); `raw` always works."""
        if self._data is msgspec.UNSET:
            self._data = self.decode(Any)
        return self._data

    @property
    def outcome(self) -> Outcome | None:
        """The later outcome that this message carries; None for any other message."""
        if self.type != OUTCOME_TYPE:
            return None
        try:
            return Outcome(*msgspec.structs.astuple(msgspec.json.decode(self._raw, type=_Outcome)))
        except (msgspec.DecodeError, RecursionError):
            return None

    def decode(self, type_: type[T]) -> T:
        """Return the data as a `type_` (a msgspec Struct, a dataclass, `dict[str, int]` …). Raises ValueError."""
        try:
            return msgspec.json.decode(self._raw, type=type_)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"the data of {self!r}: {error}") from error

    def __repr__(self) -> str:
        return f"Message(type={self.type!r}, id={self.id!r}, origin={self.origin!r}, {len(self.raw)} bytes)"


class Pong(NamedTuple):
    """The answer to a ping."""

    id: str | None


class Answer(NamedTuple):
    """The answer to a command; `good`: the server had an answer."""

    id: str | None
    good: bool
    data: msgspec.Raw

    def recipients(self) -> dict[str, str] | None:
        """Return recipient -> outcome, or None where the answer does not hold them."""
        try:
            return msgspec.json.decode(self.data, type=_Recipients).recipients
        except (msgspec.DecodeError, RecursionError):
            return None


class Unreadable(NamedTuple):
    """A frame that is neither a message, a report nor an answer."""

    why: str


class _Outcome(msgspec.Struct, gc=False):
    message: str
    recipient: str
    outcome: str


class _Recipients(msgspec.Struct):
    recipients: dict[str, str]


class _Header(msgspec.Struct, gc=False):
    kind: str | None = msgspec.field(name="messageType", default=None)
    status: str | None = None
    id: str | None = None
    origin: str | None = None
    redelivered: bool | None = None


class _Payload(msgspec.Struct):
    id: str | None = None
    type: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    reason: str | None = None
    message: str | None = None
    recipients: dict[str, str] | None = None
    note: Any = None  # text for people: a note of another type must not make the report unreadable
    retry_s: Any = None


class _Frame(msgspec.Struct):
    header: _Header | None = None
    payload: _Payload | None = None


_decode = msgspec.json.Decoder(_Frame).decode
_encode = msgspec.json.Encoder().encode
_NO_HEADER = _Header()


def parse(body: bytes) -> Message | Report | Pong | Answer | Unreadable:
    """Return the value in a frame of the server; `header` may be null or bare, as besterd writes it."""
    try:
        decoded = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Unreadable(str(error))
    header, payload = decoded.header or _NO_HEADER, decoded.payload
    if payload is None:
        return Unreadable("no payload")
    if header.kind == "statusReport":
        good = header.status == "good"
        note = payload.note if type(payload.note) is str else None
        recipients, retry_s = payload.recipients or {}, _seconds(payload.retry_s)
        return Report(good, payload.id, payload.reason, payload.message, recipients, body, note, retry_s)
    if payload.type == "dummy" and header.kind is None:
        return Pong(payload.id)
    if payload.type == "builtin" and header.kind is None:
        return Answer(payload.id, header.status == "0", payload.data)
    if payload.type is None or header.kind not in (None, "receivedMessage"):
        return Unreadable("neither a message nor a report")
    return Message(
        payload.type,
        payload.data,
        id_=header.id,
        origin=header.origin,
        redelivered=bool(header.redelivered),
        frame=body,
    )


def _seconds(value: Any) -> float | None:
    """Return a server's wait as seconds, 1 at least; None for a value that is no number or out of range."""
    return max(float(value), 1.0) if type(value) in (int, float) and 0 <= value <= LONGEST_RETRY_S else None


_SHALLOW_BYTES = 2 * json_text.DEPTH_LIMIT
"""JSON text this short cannot be nested too deep: each level takes two brackets."""


def text_of(data: Any, raw: bytes | str | None) -> bytes:
    """Return the JSON text to send: `data` encoded, or `raw` unchanged. Raises TypeError, ValueError."""
    if raw is None:
        try:
            written = _encode(data)
        except RecursionError:  # also for data that contains itself
            raise ValueError(f"data cannot be sent: {json_text.TOO_DEEP}") from None
        except UnicodeEncodeError:
            raise ValueError(f"data cannot be sent: a text of it {HALF}") from None
        except TypeError as error:
            raise TypeError(f"data cannot be sent: it is not JSON: {error}") from None
        see_finite(data, written, msgspec.to_builtins)
        if len(written) > _SHALLOW_BYTES and json_text.too_deep(written):
            raise ValueError(f"data cannot be sent: {json_text.TOO_DEEP}")
        return written
    if data is not None:
        raise TypeError("give either data or raw, not both")
    if not isinstance(raw, str | bytes):
        raise TypeError(f"raw is JSON text, as bytes or a string, not a {type(raw).__name__}")
    if isinstance(raw, str):
        check_text("raw", raw)
    text = raw.encode() if isinstance(raw, str) else raw
    fault = json_text.fault(text)
    if fault is not None:
        raise ValueError(f"raw is not JSON text that can be sent: {fault}")
    return text


def login(user: str, password: str, *, ack: bool = False) -> bytes:
    """Return the first frame's body. The login carries no message, so that exactly one answer comes."""
    header: dict[str, Any] = {"scope": "client", "authentication": {"username": user, "password": password}}
    if ack:
        header["ack"] = True
    return b'{"header":%b,"payload":{"data":null,"type":"dummy"}}' % _encode(header)


def message(type_: str, data: bytes, id_: str, terms: Terms = NO_TERMS) -> bytes:
    """Return the body of a message; `data` is JSON text. Terms at their default are left out: besterd ignores them."""
    fields = [b'"type":' + _encode(type_), b'"data":' + data, b'"id":' + _encode(id_)]
    if terms.dedup is not None:
        fields.append(b'"dedup":' + _encode(terms.dedup))
    if terms.ttl_s is not None:
        fields.append(b'"ttl_s":' + _encode(float(terms.ttl_s)))
    if terms.outcome:
        fields.append(b'"outcome":true')
    return b'{"header":null,"payload":{%b}}' % b",".join(fields)


class _Welcome(msgspec.Struct):
    max_frame: Any = None


class _WelcomeFrame(msgspec.Struct):
    payload: _Welcome


def max_frame(answer: bytes) -> int | None:
    """Return the limit on frames in the answer to a login, in bytes; None where the server gives no usable number."""
    try:
        value = msgspec.json.decode(answer, type=_WelcomeFrame).payload.max_frame
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if type(value) is int and value > 0 else None


_RESENT = b',"resent":true'
RESENT_BYTES = len(_RESENT)


def resent(body: bytes) -> bytes:
    """Return a message's body marked as sent before."""
    return body[:-2] + _RESENT + body[-2:]


def command(type_: str, data: str | Sequence[str] | None, id_: str) -> bytes:
    """Return the body of a command to the server itself."""
    content: dict[str, Any] = {"type": type_} if data is None else {"type": type_, "data": data}
    return message("builtin", _encode({"command": content}), id_)


CLOSE = command("close", None, "close")
ACKS = 1000
"""Acknowledgements in one frame: servers accept 1,024."""


def acks(ids: Sequence[str], limit_bytes: int) -> list[bytes]:
    """Return frame bodies that acknowledge these messages, each within the limit unless one id alone is longer."""
    bodies = []
    for start in range(0, len(ids), ACKS):
        bodies += _acks_within(ids[start : start + ACKS], limit_bytes)
    return bodies


def _acks_within(ids: Sequence[str], limit_bytes: int) -> list[bytes]:
    body = command("ack", ids, "ack")
    if len(body) <= limit_bytes or len(ids) == 1:
        return [body]
    middle = len(ids) // 2
    return _acks_within(ids[:middle], limit_bytes) + _acks_within(ids[middle:], limit_bytes)
